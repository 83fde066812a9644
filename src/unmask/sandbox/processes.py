"""What a tree of processes uses, as /proc tells it, and how to end one."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field

_PAGE = resource.getpagesize()
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(slots=True)
class Usage:
    """cpu_s: of all processes, also of those that have ended. own_cpu_s: of each process, by its id. waited_s: for each root,
    in which its program's first thread could have run and got no processor, and the longest such time of its other threads;
    None: the program has other processes, for which it may have waited. is_idle: no thread is running or about to. memory:
    bytes that are not shared with files, less what the server itself has. num: processes, without the roots."""

    cpu_s: float = 0.0
    own_cpu_s: dict[int, float] = field(default_factory=dict)
    waited_s: list[float | None] = field(default_factory=list)
    is_idle: bool = True
    memory: int = 0
    num: int = 0


def own_memory(proc: int) -> tuple[int, int]:
    """Bytes of address space, and of memory not shared with files, of this process; zeros where there is no /proc."""
    fields = _read(proc, "self/statm").split()
    return (int(fields[0]) * _PAGE, (int(fields[1]) - int(fields[2])) * _PAGE) if fields else (0, 0)


def measure(proc: int, roots: list[int], baseline: int) -> Usage:
    """Of the trees below `roots`, the processes that wait for the programs. baseline: `own_memory` of the server."""
    usage = Usage()
    for root in roots:
        waits, number = [0.0], 0
        for number, pid in enumerate(_tree(proc, root)):
            fields = _read(proc, f"{pid}/stat").rpartition(")")[2].split()
            if not fields:
                continue  # it has just ended; its parent has its times
            usage.num += number > 0
            usage.cpu_s += sum(map(int, fields[11:15])) * _TICK_S  # its own, and of children it has waited for
            usage.own_cpu_s[pid] = sum(map(int, fields[11:13])) * _TICK_S
            threads = _list(proc, f"{pid}/task")
            # Of a process whose first thread has ended, memory is seen at one that has not.
            memory = _memory(proc, f"{pid}") or max((_memory(proc, f"{pid}/task/{t}") for t in threads), default=0)
            usage.memory += max(0, memory - baseline)
            for thread in threads if number > 0 else ():
                waits.append(_waited_s(proc, f"{pid}/task/{thread}"))
                usage.is_idle &= not _read(proc, f"{pid}/task/{thread}/stat").rpartition(")")[2].startswith(" R")
        usage.waited_s.append(sum(waits[:2]) + max(waits[2:], default=0.0) if number <= 1 else None)
    return usage


def _memory(proc: int, path: str) -> int:
    """Bytes that are not shared with files."""
    fields = _read(proc, f"{path}/statm").split()
    return (int(fields[1]) - int(fields[2])) * _PAGE if fields else 0


def program_waited_s(proc: int) -> float:
    """Of this process, a root, and of its first child, which has ended and has not been waited for."""
    children = [child for thread in _list(proc, "self/task") for child in _read(proc, f"self/task/{thread}/children").split()]
    return sum(_waited_s(proc, pid) for pid in ("self", *children[:1]))


def _waited_s(proc: int, path: str) -> float:
    return int((_read(proc, f"{path}/schedstat").split() or ["0", "0"])[1]) / 1e9


def end_all(proc: int, roots: list[int], *, is_last_user: bool = False) -> None:
    """Kills the trees and waits until they are gone. is_last_user: everything else of this user belongs to them, too.

    Raises `ValueError` where that would be everything on the machine.
    """
    if is_last_user and 0 in os.getresuid():
        raise ValueError("nothing of root's is ended as a whole")
    for root in roots:
        with contextlib.suppress(ProcessLookupError):
            os.kill(root, signal.SIGKILL)  # of namespaces: everything in them
    while True:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if is_last_user:
                os.kill(-1, signal.SIGKILL)
        for pid in list(_tree(proc, os.getpid()))[1:]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)  # orphans come to this process
        except ChildProcessError:
            return


def _tree(proc: int, root: int) -> Iterator[int]:
    """The process and its descendants, parents first; of any depth."""
    found = [root]
    while found:
        yield (pid := found.pop())
        for thread in _list(proc, f"{pid}/task"):
            found += map(int, _read(proc, f"{pid}/task/{thread}/children").split())


def _list(proc: int, path: str) -> list[str]:
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
        try:
            return sorted(os.listdir(fd), key=int)
        finally:
            os.close(fd)
    return []


def _read(proc: int, path: str) -> str:
    """Empty where the process has ended, or there is no /proc (proc is -1)."""
    if proc < 0:
        return ""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY, dir_fd=proc)
        try:
            return os.read(fd, 65536).decode()
        finally:
            os.close(fd)
    return ""

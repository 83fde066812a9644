"""`Sandbox`: the caller's side. Hands programs to the server and reads what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Literal, NamedTuple, TypeVar

from unmask.errors import UnmaskError
from unmask.sandbox.connection import Connection
from unmask.sandbox.jail import Bounds
from unmask.sandbox.keeper import SETUP_S, Outcome

Isolation = Literal["auto", "namespaces", "bubblewrap", "process"]
_GRACE_S = 10.0  # of a keeper, after all its own limits
_PAUSES_S = (0.1, 1.0, 5.0)  # before it is tried again, where not even our own program can be run
_FUTURE = re.compile(r"^from __future__ import [\w, ]+", re.MULTILINE)
PROTECTIONS = {
    "namespaces": "own users, processes, files, network and IPC (kernel namespaces)",
    "bubblewrap": "own users, processes, files, network and IPC (bubblewrap; programs start cold)",
    "process": "none of its own users, processes, files and network: this system grants no namespaces and has no bubblewrap",
}


class Ran(NamedTuple):
    """What a script did. stdout, stderr: bytes, at most what `Bounds.output_mb` allows."""

    outcome: Outcome
    stdout: bytes
    stderr: bytes


class Tested(NamedTuple):
    """What the test code's process said; `passed` is true only if that came to its end and said so."""

    outcome: Outcome
    passed: bool
    reason: str
    stderr: bytes


Result = TypeVar("Result", Ran, Tested)


class Sandbox:
    """Runs untrusted programs, `num_workers` at a time. Use within one event loop, as `async with Sandbox() as sandbox`.

    isolation: auto takes the strongest that works here. After `start`, `isolation` says which, `missing` what the system does
    not grant, and `describe()` both in one line.

    A program that could not be run is run again if the sandbox runs others; a server that has ended is started again. Raises
    `UnmaskError` where it then runs nothing.
    """

    def __init__(self, isolation: Isolation = "auto", num_workers: int | None = None):
        self.isolation: str = isolation
        self.missing: list[str] = []
        self._slots = asyncio.Semaphore(num_workers or os.cpu_count() or 1)
        self._repair = asyncio.Lock()
        self._connection: Connection | None = None

    async def __aenter__(self) -> Sandbox:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def describe(self) -> str:
        missing = f"; not granted by this system: {', '.join(self.missing)}" if self.missing else ""
        return f"{PROTECTIONS[self.isolation]}; limits of time, memory, processes, files and output{missing}"

    async def start(self) -> None:
        """Raises `UnmaskError` where no program can be run at all, or not in the isolation that was asked for."""
        await self.close()
        wanted = [self.isolation] if self.isolation != "auto" else ["namespaces", "bubblewrap", "process"]
        reasons = []
        for isolation in wanted:
            try:
                self._connection = await asyncio.to_thread(Connection, isolation)
                self.isolation = isolation
                ran = await self._run_our_own()
                if _has_worked(ran):
                    self.missing = ran.outcome.missing
                    return
                reasons.append(f"{isolation}: {ran.stderr.decode(errors='replace').strip() or ran.outcome}")
            except (OSError, ValueError) as error:
                reasons.append(f"{isolation}: {error}")
            await self.close()
        raise UnmaskError(f"the code sandbox does not run here; {'; '.join(reasons)}")

    async def close(self) -> None:
        """Ends whatever still runs."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def run_script(self, program: str, stdin: str, bounds: Bounds) -> Ran:
        """Runs a program by itself."""
        async with self._slots:  # before there are files: of thousands of jobs that wait, no descriptor is open
            return await self._insist(lambda: self._run_script(program, stdin, bounds))

    async def run_test(self, program: str, test: str, prefix: str, bounds: Bounds) -> Tested:
        """Runs test code that calls the program's functions. prefix: code that stands before the program."""
        async with self._slots:
            return await self._insist(lambda: self._run_test(program, test, prefix, bounds))

    async def _insist(self, run: Callable[[], Awaitable[Result]]) -> Result:
        """Runs a program, and once more if the fault may have been this machine's and is over."""
        for pause in _PAUSES_S:
            result = await run()
            if result.outcome.stopped_for != "setup":
                return result
            async with self._repair:
                if self._connection is not None and self._connection.is_broken:
                    await self._start_again(self._connection)
                if _has_worked(await self._run_our_own()):
                    return await run()
            await asyncio.sleep(pause)
        raise UnmaskError("the code sandbox has stopped running programs, even our own; see `unmask sandbox check`")

    async def _start_again(self, connection: Connection) -> None:
        await connection.close()
        with contextlib.suppress(OSError, ValueError):  # then nothing will work
            self._connection = await asyncio.to_thread(Connection, self.isolation)

    async def _run_our_own(self) -> Ran:
        """With an import of what the server has not loaded: programs must be able to read the library."""
        return await self._run_script("import sched; print(input())", "works", Bounds(time_s=10.0))

    async def _run_script(self, program: str, stdin: str, bounds: Bounds) -> Ran:
        with contextlib.ExitStack() as files:
            source, given = _file(files, json.dumps({"program": join("", program)}).encode()), _file(files, stdin.encode())
            stdout, stderr = _file(files), _file(files)
            outcome = await self._run([("script", [given, stdout, stderr, source])], bounds)
            return Ran(outcome, _content(stdout, bounds), _content(stderr, bounds))

    async def _run_test(self, program: str, test: str, prefix: str, bounds: Bounds) -> Tested:
        with contextlib.ExitStack() as files:
            source = _file(files, json.dumps({"program": join(prefix, program)}).encode())
            tests = _file(files, json.dumps({"test": test, "prefix": prefix}).encode())
            nothing, stdout, stderr, ignored, result = (_file(files) for _ in range(5))
            ours, theirs = (files.enter_context(end) for end in socket.socketpair())
            members = [
                ("functions", [nothing, stdout, stderr, source, ours.fileno()]),
                ("tests", [nothing, ignored, ignored, tests, theirs.fileno(), result]),
            ]
            outcome = await self._run(members, bounds, (ours, theirs))
            passed, reason = False, "the test did not come to its end"
            with contextlib.suppress(ValueError, TypeError):
                said = json.loads(_content(result, bounds))
                passed, reason = said["passed"] is True, str(said["reason"])
            return Tested(outcome, passed, reason, _content(stderr, bounds))

    async def _run(
        self, members: Sequence[tuple[str, list[int]]], bounds: Bounds, ours: Sequence[socket.socket] = ()
    ) -> Outcome:
        if self._connection is None:
            raise UnmaskError("the code sandbox is not running")
        status, theirs = os.pipe()
        folder = tempfile.mkdtemp(prefix="unmask-program-") if self.isolation == "process" else ""
        request = {"bounds": asdict(bounds), "members": [[role, len(fds)] for role, fds in members], "folder": folder}
        is_taken = False
        try:
            try:
                is_taken = self._connection.hand_over(request, [theirs, *(fd for _, fds in members for fd in fds)])
            finally:
                os.close(theirs)
            if not is_taken:
                return Outcome(stopped_for="setup")
            for end in ours:
                end.close()
            return await _read_outcome(status, SETUP_S + bounds.hard_time_s + _GRACE_S)
        finally:
            os.close(status)
            if folder and not is_taken:
                os.rmdir(folder)  # else it is the keeper's, who outlives a caller that has given up


def join(prefix: str, program: str) -> str:
    """As one source: without a mark of byte order, and with what Python wants at the beginning there."""
    program = program.removeprefix("\ufeff")
    if not prefix.strip():
        return program
    return "\n".join([*_FUTURE.findall(program), prefix, _FUTURE.sub("", program)])


def _has_worked(ran: Ran) -> bool:
    """Our own program."""
    return ran.stdout == b"works\n" and ran.outcome.exit_code == 0


async def _read_outcome(status: int, timeout_s: float) -> Outcome:
    """A keeper that says nothing has not run anything to its end."""
    loop, data = asyncio.get_running_loop(), b""
    ended: asyncio.Future[None] = loop.create_future()

    def read() -> None:
        nonlocal data
        part = os.read(status, 65536)
        data += part
        if not part and not ended.done():
            ended.set_result(None)

    loop.add_reader(status, read)
    try:
        await asyncio.wait_for(ended, timeout_s)
    except TimeoutError:
        return Outcome(stopped_for="setup")
    finally:
        loop.remove_reader(status)
    try:
        return Outcome(**json.loads(data))
    except (ValueError, TypeError):
        return Outcome(stopped_for="setup")


def _file(files: contextlib.ExitStack, content: bytes = b"") -> int:
    """A descriptor of a file without a name, at its beginning; closed with `files`."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("unmask")
        files.callback(os.close, fd)
    else:
        fd = files.enter_context(tempfile.TemporaryFile()).fileno()  # noqa: SIM115
    while content:
        content = content[os.write(fd, content) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _content(fd: int, bounds: Bounds) -> bytes:
    return os.pread(fd, bounds.output_mb << 20, 0)

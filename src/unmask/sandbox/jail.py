"""What a process gives up before it runs a program: descriptors, capabilities, system calls, and more than its share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import signal
from dataclasses import dataclass

from unmask.sandbox import kernel, landlock, seccomp

_STACK_BYTES = 1 << 26


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one job may use. time_s: seconds of a test, both of processor time (of all its processes together) and by the
    clock, less what it waited for a processor. Memory: of all its processes together."""

    time_s: float = 1.0
    memory_mb: int = 1024
    num_processes: int = 32
    file_mb: int = 64
    output_mb: int = 16

    @property
    def hard_time_s(self) -> float:
        """By the clock alone: however busy the machine is."""
        return 10 * self.time_s + 5


def limit(bounds: Bounds, address_space: int, has_own_count: bool) -> None:
    """Limits of the kernel, for this process and all it starts. address_space: bytes that are in use already. has_own_count:
    the kernel counts the job's processes by themselves, not with all of this user."""
    memory = address_space + (bounds.memory_mb << 20)
    largest_file = max(bounds.file_mb, bounds.output_mb) << 20
    seconds = int(bounds.time_s) + 2
    for what, value in (
        ("AS", memory), ("CPU", seconds), ("FSIZE", largest_file), ("NPROC", bounds.num_processes + 2), ("NOFILE", 256),
        ("STACK", _STACK_BYTES), ("CORE", 0), ("MEMLOCK", 0), ("MSGQUEUE", 0), ("RTPRIO", 0), ("NICE", 0),
    ):  # fmt: skip
        number = getattr(resource, f"RLIMIT_{what}", None)  # not every system has all of them
        if number is not None and (has_own_count or what != "NPROC"):
            hard = resource.getrlimit(number)[1]
            soft = value if hard < 0 else min(value, hard)
            with contextlib.suppress(ValueError, OSError):
                # Solvers of deep recursions ask for more stack, which is memory like any other.
                resource.setrlimit(number, (soft, hard if what == "STACK" else soft))


def keep_descriptors(descriptors: list[int]) -> None:
    """They become 0, 1, 2, ... in their order; all others are closed."""
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 64) for fd in descriptors]  # none of these is overwritten below
    for i, fd in enumerate(high):
        os.dup2(fd, i)
    os.closerange(len(high), 65536)


def close(isolation: str, readable: list[str], writable: list[str]) -> list[str]:
    """Gives up rights for good. Returns the protections that this system did not grant.

    With namespaces every one of them is granted, or `OSError` is raised: there is no reason for less.
    """
    missing = []
    os.umask(0o077)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # as in any Python
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    has_namespaces = isolation != "process"
    for what, give_up in (
        ("capabilities", kernel.drop_capabilities),
        ("files (landlock)", lambda: None if has_namespaces else landlock.restrict(readable, writable)),
        ("system calls (seccomp)", lambda: seccomp.install(has_namespaces=has_namespaces)),
    ):
        try:
            give_up()
        except OSError:
            if has_namespaces and kernel.machine in seccomp.MACHINES:
                raise
            missing.append(what)
    return missing

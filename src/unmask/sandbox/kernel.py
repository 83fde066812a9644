"""System calls of Linux that the standard library has no functions for; where they are missing, `OSError`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x20000, 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET = 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SIGCHLD = 17
_CAPABILITY_VERSION_3 = 0x20080522
_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100

is_linux = sys.platform == "linux"
machine = platform.machine()
# Of the two machines that the numbers below are known for; elsewhere these calls are reported as missing.
_CLONE = {"x86_64": 56, "aarch64": 220}
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_MOUNT_SETATTR = 442  # the same everywhere
_libc = ctypes.CDLL(None, use_errno=True)


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int | None, what: str, *arguments: object) -> int:
    """Raises `OSError` where the call fails or its number is not known for this machine."""
    if not is_linux or number is None:
        raise OSError(f"{what}: not on this system")
    return check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def prctl(option: int, value: int, third: int = 0) -> None:
    if not is_linux:
        raise OSError("prctl: not on this system")
    zero = ctypes.c_ulong(0)
    check(_libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(third), zero, zero), "prctl")


def unshare(flags: int) -> None:
    if not is_linux:
        raise OSError("unshare: not on this system")
    check(_libc.unshare(flags), "unshare")


def clone(flags: int) -> int:
    """Like `os.fork`, into new namespaces. The process has one thread, and the child soon forks or ends: Python's own
    preparations for a fork are left out."""
    zero = ctypes.c_ulong(0)
    return syscall(_CLONE.get(machine), "clone", ctypes.c_ulong(flags | SIGCHLD), zero, zero, zero, zero)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    check(result, f"mount on {target}")


def set_read_only(target: str) -> None:
    """Also what is mounted below it."""
    attributes = (ctypes.c_uint64 * 4)(MS_RDONLY | MS_NOSUID | MS_NODEV, 0, 0, 0)  # the same bits as mount's
    arguments = ctypes.c_int(_AT_FDCWD), target.encode(), ctypes.c_uint(_AT_RECURSIVE), ctypes.byref(attributes)
    syscall(_MOUNT_SETATTR, f"mount_setattr on {target}", *arguments, ctypes.c_size_t(32))


def change_root(folder: str) -> None:
    """Makes `folder`, a mount point, the root, and lets go of the old one."""
    os.chdir(folder)
    syscall(_PIVOT_ROOT.get(machine), "pivot_root", b".", b".")
    check(_libc.umount2(b".", MNT_DETACH), "umount")
    os.chdir("/")


def drop_capabilities() -> None:
    """All of them, for good: none can come back through an executable either."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    check(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def become_hidden() -> None:
    """Other processes of the same user can neither read this one's memory nor trace it."""
    prctl(PR_SET_DUMPABLE, 0)


def end_with_parent(signal_number: int, parent: int) -> None:
    """This process gets the signal when its parent (process id) ends, or ends at once if it has already."""
    with contextlib.suppress(OSError):
        prctl(PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent:
        os._exit(1)

"""Landlock: which files a process may touch, where there is no mount namespace to hide the others in (Linux 5.13)."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable

from unmask.sandbox import kernel

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every machine
_RULE_PATH_BENEATH, _GET_VERSION = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ALL = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}  # rights by version: also to link across folders, to truncate
_TCP = 3  # to bind and to connect; since version 4
_SCOPES = 3  # abstract sockets, and signals, only among the restricted; since version 6
_ANY_FILE = _EXECUTE | _READ_FILE | _WRITE_FILE


class _Rule(ctypes.Structure):
    _pack_ = 1
    _layout_ = "ms"
    _fields_ = (("allowed", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def version() -> int:
    """Raises `OSError` where the kernel has none."""
    return kernel.syscall(
        _CREATE if kernel.is_linux else None, "landlock", None, ctypes.c_size_t(0), ctypes.c_uint32(_GET_VERSION)
    )


def restrict(readable: Iterable[str], writable: Iterable[str]) -> None:
    """This process and all it starts: files below `readable` may be read and executed, those below `writable` everything,
    others nothing. No TCP, no signals to others, where the kernel knows how. `PR_SET_NO_NEW_PRIVS` has been set.

    Raises `OSError`.
    """
    known = version()
    handled = _ALL[min(3, known)]
    attributes = (ctypes.c_uint64 * 3)(handled, _TCP, _SCOPES)
    size = 24 if known >= 6 else 16 if known >= 4 else 8
    rules = kernel.syscall(_CREATE, "landlock", ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint32(0))
    allowed = [(path, _EXECUTE | _READ_FILE | _READ_DIR) for path in readable] + [(path, handled) for path in writable]
    for path, rights in allowed:
        if not os.path.exists(path):
            continue
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
        if not os.path.isdir(path):
            rights &= _ANY_FILE | handled >> 14 << 14
        rule = _Rule(rights, parent)
        number = ctypes.c_int(_RULE_PATH_BENEATH)
        kernel.syscall(_ADD_RULE, f"landlock, {path}", ctypes.c_int(rules), number, ctypes.byref(rule), ctypes.c_uint32(0))
        os.close(parent)
    kernel.syscall(_RESTRICT, "landlock", ctypes.c_int(rules), ctypes.c_uint32(0))
    os.close(rules)

"""The process that programs are forked from. It has Python and the usual modules loaded, and knows no program and no test.

A request is one message on a socket, with descriptors: `{"bounds": {...}, "members": [[role, number of descriptors], ...],
"folder": ...}`; the first descriptor is for the outcome. It is answered with one byte as soon as a keeper has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import itertools
import json
import os
import signal
import socket
import sys
from typing import Any

from unmask.sandbox import kernel, view
from unmask.sandbox.jail import Bounds
from unmask.sandbox.keeper import Place, keep

# What programs commonly import: loaded once.
_COMMON = (
    "array", "bisect", "cmath", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "operator", "queue", "random", "re", "statistics", "string", "textwrap",
    "threading", "time", "traceback", "typing", "unicodedata",
)  # fmt: skip
_NOBODY = 65534
_FIRST_USER = 0x70000000  # up to 0x7FFC0000: of nobody, containers and directories of users stay below
_PATIENCE_S = 5  # with keepers, in the end
_LARGEST_REQUEST, _MOST_DESCRIPTORS = 1 << 16, 16


def main(config: dict[str, Any]) -> None:
    """config: `socket` (descriptor), `isolation`, `folder` (empty, a mount point for the view), `command` (see `Place`).

    Says `{"ready": true}` or `{"failed": reason}` first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who started it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers report by themselves
    connection = socket.socket(fileno=config["socket"])
    for module in _COMMON:
        importlib.import_module(module)
    try:
        place = _make_place(config)
    except OSError as error:
        connection.sendall(json.dumps({"failed": str(error)}).encode())
        return
    gc.freeze()  # programs collect their own garbage only
    connection.sendall(json.dumps({"ready": True}).encode())
    for number in itertools.count():
        data, descriptors, _, _ = socket.recv_fds(connection, _LARGEST_REQUEST, _MOST_DESCRIPTORS)
        if not data:
            break
        if _fork() == 0:
            connection.close()
            _keep(_with_user(place, number), json.loads(data), descriptors)
        for fd in descriptors:
            os.close(fd)
        connection.sendall(b".")
    signal.alarm(_PATIENCE_S)  # ends this process, and with it all that are left
    with contextlib.suppress(ChildProcessError):
        os.wait()  # for all keepers: they end as nobody waits for their outcome any more


def _fork() -> int:
    """-1 where there is no room for another process: the job's outcome is closed unwritten, which says that it did not run."""
    try:
        return os.fork()
    except OSError as error:
        print(f"sandbox: {error}", file=sys.stderr, flush=True)
        return -1


def _keep(place: Place, request: dict[str, Any], descriptors: list[int]) -> None:
    status, *rest = descriptors
    members = []
    for role, num in request["members"]:
        members.append((role, rest[:num]))
        rest = rest[num:]
    keep(place, Bounds(**request["bounds"]), status, members, request["folder"])


def _make_place(config: dict[str, Any]) -> Place:
    """Raises `OSError` where the kernel does not grant namespaces."""
    proc = -1
    with contextlib.suppress(OSError):
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    is_root = os.geteuid() == 0
    readable = view.readable_paths()
    if config["isolation"] == "namespaces":
        spaces = kernel.CLONE_NEWNS | kernel.CLONE_NEWNET | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
        if is_root:
            kernel.unshare(spaces)
        else:
            user, group = os.geteuid(), os.getegid()
            kernel.unshare(spaces | kernel.CLONE_NEWUSER)
            for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
        view.enter(config["folder"])
    kernel.become_hidden()
    return Place(config["isolation"], proc, readable, os.getpid(), _NOBODY if is_root else None, False, config["command"])


def _with_user(place: Place, number: int) -> Place:
    """With a user of its own for the job of this number, if this process can become anyone."""
    if place.user is None:
        return place
    user = _FIRST_USER + (place.server_pid % 0xFFC << 16) + number % 0x10000
    try:
        os.setresuid(user, 0, 0)  # and back; refused where few ids are mapped
        os.setresuid(0, 0, 0)
    except OSError:
        return place
    return dataclasses.replace(place, user=user, is_own_user=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

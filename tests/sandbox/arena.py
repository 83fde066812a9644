"""What programs must leave alone, watched while they run: processes, files, sockets, and the time of others."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from unmask.errors import UnmaskError
from unmask.sandbox.client import Sandbox
from unmask.sandbox.server import _FIRST_USER

ROOT = Path(__file__).parents[2]
libc = ctypes.CDLL(None)


def new_sandbox(isolation: str, monkeypatch: pytest.MonkeyPatch, num_workers: int = 4) -> Sandbox:
    """Skips the test where this isolation cannot be had here at all."""
    if isolation == "bubblewrap" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    if isolation != "namespaces" and os.geteuid() == 0 and not _is_readable(sys.base_prefix):
        if isolation == "bubblewrap":
            pytest.skip(f"bubblewrap runs as a user who cannot read this interpreter ({sys.base_prefix})")
        other = shutil.which("python3", path="/usr/bin:/usr/local/bin")
        if other is None or not _is_readable(other):
            pytest.skip(f"no interpreter that another user than root can read; this one is in {sys.base_prefix}")
        monkeypatch.setattr(sys, "executable", other)
    return Sandbox(isolation, num_workers)


async def start(sandbox: Sandbox) -> None:
    """Skips the test where the system does not grant this isolation."""
    try:
        await sandbox.start()
    except UnmaskError as error:
        pytest.skip(f"not here: {error}")


def _is_readable(path: str) -> bool:
    """By everybody."""
    resolved = Path(path).resolve()
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in [resolved, *resolved.parents])


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    user: int
    command: str


def processes() -> dict[int, Process]:
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                command = (folder / "cmdline").read_text().replace("\0", " ")
                found[int(folder.name)] = Process(int(folder.name), int(fields[1]), _user(folder), command)
    return found


def _user(folder: Path) -> int:
    """Of processes that hide, the folder is root's."""
    return next(int(line.split()[1]) for line in (folder / "status").read_text().splitlines() if line.startswith("Uid:"))


def below(server: int) -> list[Process]:
    """Descendants of the server, and whatever runs as one of its users."""
    everything = processes()
    first_user = _FIRST_USER + (server % 0xFFC << 16)

    def is_below(process: Process) -> bool:
        parent = everything.get(process.parent)
        return process.parent == server or (parent is not None and is_below(parent))

    return [
        process
        for process in everything.values()
        if is_below(process) or process.user in range(first_user, first_user + 0x10000)
    ]


class Arena:
    """As a context: a canary, listeners and a folder for temporary files. `changes()` says what has been touched."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.folder = Path(tempfile.mkdtemp(prefix="arena-"))
        self.canary, self.temporary = self.folder / "canary", self.folder / "temporary"
        monkeypatch.setattr(tempfile, "tempdir", str(self.temporary))
        self.name = f"arena-{os.getpid()}-{self.folder.name}"
        self.listeners = {
            "TCP": socket.create_server(("127.0.0.1", 0)),
            "UDP": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
            "abstract stream": socket.socket(socket.AF_UNIX, socket.SOCK_STREAM),
            "abstract datagrams": socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM),
        }
        self.segment = max(0, libc.shmget(0, 4096, 0o1666))  # which everyone may use
        self.port = self.listeners["TCP"].getsockname()[1]
        self.listeners["UDP"].bind(("127.0.0.1", self.port))
        self.listeners["abstract stream"].bind(f"\0{self.name}")
        self.listeners["abstract stream"].listen()
        self.listeners["abstract datagrams"].bind(f"\0{self.name}")
        for listener in self.listeners.values():
            listener.setblocking(False)

    def __enter__(self) -> Arena:
        self.folder.chmod(0o755)
        for folder in (self.canary, self.temporary):
            folder.mkdir()
            folder.chmod(0o777)
        (self.canary / "file").write_text("untouched")
        (self.canary / "file").chmod(0o666)
        self.before = self._look()
        return self

    def __exit__(self, *exc_info: object) -> None:
        libc.shmctl(self.segment, 0, None)
        for listener in self.listeners.values():
            listener.close()
        shutil.rmtree(self.folder)

    def place(self, program: str) -> str:
        """With what stands for names of this place."""
        names = {"@CANARY@": self.canary, "@TREE@": ROOT, "@PORT@": self.port, "@NAME@": self.name, "@SEGMENT@": self.segment}
        for name, value in names.items():
            program = program.replace(name, str(value))
        return program

    def changes(self) -> list[str]:
        after = self._look()
        found = [
            f"{name}: {self.before[name]!r} has become {after[name]!r}" for name in after if after[name] != self.before[name]
        ]
        for name, listener in self.listeners.items():
            with contextlib.suppress(BlockingIOError):
                listener.recv(100) if listener.type == socket.SOCK_DGRAM else listener.accept()
                found.append(f"somebody came to the {name} socket")
        return found

    def _look(self) -> dict[str, object]:
        states = {}
        for path in (self.canary, self.canary / "file", self.temporary):
            state = path.stat()
            states[str(path)] = (state.st_mode, state.st_uid, state.st_mtime, state.st_nlink)
        states[str(self.temporary)] = None  # it is used by the sandbox itself
        status = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT), "status", "--porcelain"], capture_output=True, check=False
        )
        places = ["/tmp", "/var/tmp", "/dev/shm", "/etc", "/dev", "/run", sys.prefix, str(Path(os.__file__).parent)]
        return {
            **states,
            "in the canary": sorted(os.listdir(self.canary)),
            "content": (self.canary / "file").read_bytes(),
            "temporary files": sorted(os.listdir(self.temporary)),
            "working tree": status.stdout,
            "left by an attack": [p for p in places if os.path.lexists(os.path.join(p, "canary-of-an-attack"))],
        }

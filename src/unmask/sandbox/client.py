"""`Sandbox`: the caller's side. Hands programs to the server and reads what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, NamedTuple

from unmask.errors import UnmaskError
from unmask.sandbox import view
from unmask.sandbox.jail import Bounds
from unmask.sandbox.keeper import FOLDER_BYTES, SETUP_S, Outcome

Isolation = Literal["auto", "namespaces", "bubblewrap", "process"]
PACKAGE = Path(__file__).parents[1]
# This very package, not another one that is installed; and nothing else from where it is.
_IMPORT = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import unmask; del sys.path[0]"
_START_S = 60.0
_GRACE_S = 10.0  # of a keeper, after all its own limits
PROTECTIONS = {
    "namespaces": "own users, processes, files, network and IPC (kernel namespaces)",
    "bubblewrap": "own users, processes, files, network and IPC (bubblewrap; programs start cold)",
    "process": "none of its own users, processes, files and network: this system grants no namespaces and has no bubblewrap",
}
# No variable of the caller's: they hold keys and paths. Sets are in the same order every time.
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip


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


class Sandbox:
    """Runs untrusted programs, `num_workers` at a time. Use within one event loop, as `async with Sandbox() as sandbox`.

    isolation: auto takes the strongest that works here. After `start`, `isolation` says which, `missing` what the system does
    not grant, and `describe()` both in one line.
    """

    def __init__(self, isolation: Isolation = "auto", num_workers: int | None = None):
        self.isolation: str = isolation
        self.missing: list[str] = []
        self._slots = asyncio.Semaphore(num_workers or os.cpu_count() or 1)
        self._server: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None

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
        wanted = [self.isolation] if self.isolation != "auto" else ["namespaces", "bubblewrap", "process"]
        reasons = []
        for isolation in wanted:
            try:
                await asyncio.to_thread(self._start_server, isolation)
                self.isolation = isolation
                # An import of what the server has not loaded: programs must be able to read the library.
                ran = await self.run_script("import sched; print(input())", "works", Bounds(time_s=10.0))
                if ran.stdout == b"works\n" and ran.outcome.exit_code == 0:
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
            self._connection.close()
            self._connection = None
        if self._server is not None:
            server, self._server = self._server, None
            for _ in range(int(_GRACE_S / 0.01)):
                if server.poll() is not None:
                    return
                await asyncio.sleep(0.01)
            server.kill()
            server.wait()

    def _start_server(self, isolation: str) -> None:
        """Raises `OSError` or `ValueError` where it does not come up."""
        if not hasattr(socket, "recv_fds") or not hasattr(os, "fork"):
            raise OSError("this system cannot hand descriptors to another process")
        command = _bubblewrap() if isolation == "bubblewrap" else []
        connection, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryDirectory(prefix="unmask-sandbox-") as folder:
            config = {"socket": theirs.fileno(), "isolation": isolation, "folder": folder, "command": command}
            code = f"{_IMPORT}; from unmask.sandbox import server; import json"
            self._server = subprocess.Popen(
                [sys.executable, "-s", "-P", "-B", "-c", f"{code}; server.main(json.loads(sys.argv[1]))", json.dumps(config)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=_ENVIRONMENT, cwd="/",
                start_new_session=True,
            )  # fmt: skip
            theirs.close()
            connection.settimeout(_START_S)
            self._connection = connection
            answer = json.loads(connection.recv(4096) or b'{"failed": "the server ended as it started"}')
        if "failed" in answer:
            raise OSError(answer["failed"])

    async def run_script(self, program: str, stdin: str, bounds: Bounds) -> Ran:
        """Runs a program by itself."""
        async with self._slots:  # before there are files: of thousands of jobs that wait, no descriptor is open
            return await self._run_script(program, stdin, bounds)

    async def _run_script(self, program: str, stdin: str, bounds: Bounds) -> Ran:
        with contextlib.ExitStack() as files:
            source, given = _file(files, json.dumps({"program": program}).encode()), _file(files, stdin.encode())
            stdout, stderr = _file(files), _file(files)
            outcome = await self._run([("script", [given, stdout, stderr, source])], bounds)
            return Ran(outcome, _content(stdout, bounds), _content(stderr, bounds))

    async def run_test(self, program: str, test: str, prefix: str, bounds: Bounds) -> Tested:
        """Runs test code that calls the program's functions. prefix: code that stands before the program."""
        async with self._slots:
            return await self._run_test(program, test, prefix, bounds)

    async def _run_test(self, program: str, test: str, prefix: str, bounds: Bounds) -> Tested:
        with contextlib.ExitStack() as files:
            source = _file(files, json.dumps({"program": f"{prefix}\n{program}"}).encode())
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
                socket.send_fds(
                    self._connection, [json.dumps(request).encode()], [theirs, *(fd for _, fds in members for fd in fds)]
                )
                is_taken = self._connection.recv(1) == b"."
            except OSError:
                pass
            finally:
                os.close(theirs)
            if not is_taken:
                raise UnmaskError("the code sandbox's server has ended")
            for end in ours:
                end.close()
            return await _read_outcome(status, SETUP_S + bounds.hard_time_s + _GRACE_S)
        finally:
            os.close(status)
            if folder and not is_taken:
                os.rmdir(folder)  # else it is the keeper's, who outlives a caller that has given up


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


def _bubblewrap() -> list[str]:
    """The words that start an interpreter in it. Raises `OSError` where it is not installed."""
    path = shutil.which("bwrap")
    if path is None:
        raise OSError("bubblewrap (bwrap) is not installed")
    words = [path, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    package = [str(PACKAGE / name) for name in ("__init__.py", "errors.py", "sandbox")]
    for readable in [*view.readable_paths(), *package]:
        words += ["--ro-bind", readable, readable]
    for device in view.DEVICES:
        words += ["--dev-bind", device, device]
    for link in view.LINKS:
        if not any(readable.startswith(f"{link}/") for readable in [*view.readable_paths(), *package]):
            words += ["--symlink", view.FOLDER, link]
    words += ["--size", FOLDER_BYTES, "--tmpfs", view.FOLDER, "--remount-ro", "/", "--chdir", view.FOLDER]
    code = f"{_IMPORT}; from unmask.sandbox import roles; roles.begin_cold(sys.argv)"
    return [*words, "--", sys.executable, "-s", "-P", "-B", "-c", code]

"""The server as a process of its own: started, handed jobs, ended."""

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
import time
from collections.abc import Sequence
from pathlib import Path

from unmask.sandbox import view
from unmask.sandbox.keeper import FOLDER_BYTES

PACKAGE = Path(__file__).parents[1]
# This very package, not another one that is installed; and nothing else from where it is.
IMPORT = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import unmask; del sys.path[0]"
_START_S = 60.0  # also of its longest answer
_END_S = 10.0
# No variable of the caller's: they hold keys and paths. Sets are in the same order every time. Threads share the memory they
# allocate from: 64 MB of addresses for each would soon be more than a program may have.
_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
}  # fmt: skip


class Connection:
    """To a server of its own, which ends with it. Raises `OSError` or `ValueError` where that does not come up."""

    def __init__(self, isolation: str):
        if not hasattr(socket, "recv_fds") or not hasattr(os, "fork"):
            raise OSError("this system cannot hand descriptors to another process")
        self.is_broken = False
        command = _bubblewrap() if isolation == "bubblewrap" else []
        self._socket, theirs = socket.socketpair()
        try:
            with theirs, tempfile.TemporaryDirectory(prefix="unmask-sandbox-") as folder:
                config = {"socket": theirs.fileno(), "isolation": isolation, "folder": folder, "command": command}
                code = f"{IMPORT}; from unmask.sandbox import server; import json; server.main(json.loads(sys.argv[1]))"
                self.server = subprocess.Popen(
                    [sys.executable, "-s", "-P", "-B", "-c", code, json.dumps(config)],
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], env=_ENVIRONMENT, cwd="/",
                    start_new_session=True,
                )  # fmt: skip
                theirs.close()
                self._socket.settimeout(_START_S)
                answer = json.loads(self._socket.recv(4096) or b'{"failed": "the server ended as it started"}')
            if "failed" in answer:
                raise OSError(answer["failed"])
        except BaseException:
            self._socket.close()  # upon which a server ends
            raise

    def hand_over(self, request: object, descriptors: Sequence[int]) -> bool:
        """Whether the server has taken the job; if not, it takes no other one, either."""
        with contextlib.suppress(OSError):
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            if self._socket.recv(1) == b".":
                return True
        self.is_broken = True
        return False

    async def close(self) -> None:
        """Ends whatever still runs."""
        self._socket.close()
        ends_at = time.monotonic() + _END_S
        while self.server.poll() is None and time.monotonic() < ends_at:
            await asyncio.sleep(0.01)
        self.server.kill()
        self.server.wait()


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
    code = f"{IMPORT}; from unmask.sandbox import roles; roles.begin_cold(sys.argv)"
    return [*words, "--", sys.executable, "-s", "-P", "-B", "-c", code]

"""`unmask sandbox`."""

from __future__ import annotations

import os
import time

from rich.console import Console
from rich.table import Table

from unmask.errors import UnmaskError

TOKEN = "UNMASK_SANDBOX_TOKEN"
_NUM_PROGRAMS = 100


def run_check() -> None:
    """Prints what protects this machine from programs, and how fast they are. Raises `UnmaskError` where none can be run."""
    from unmask.rewards.code_tests import describe_sandbox, run_code_tests

    table = Table(show_header=False)
    table.add_row("protections", describe_sandbox())
    tests = {"test_method": "stdio", "test_input": ["20 22\n"] * _NUM_PROGRAMS, "test_output": ["42"] * _NUM_PROGRAMS}
    start = time.monotonic()
    results = run_code_tests("print(sum(map(int, input().split())))", tests)
    seconds = time.monotonic() - start
    table.add_row("short programs per second", f"{_NUM_PROGRAMS / seconds:.0f}")
    Console(highlight=False).print(table)
    if failed := [result.reason for result in results if not result.passed]:
        raise UnmaskError(f"{len(failed)} of {_NUM_PROGRAMS} correct programs failed: {failed[0]}")


def run_serve(host: str, port: int) -> None:
    """Serves until it is interrupted. Raises `UnmaskError`."""
    from unmask.rewards.code_tests import describe_sandbox
    from unmask.rewards.remote_code import make_server

    token = os.environ.get(TOKEN, "")
    if not token and host not in ("127.0.0.1", "localhost", "::1"):
        raise UnmaskError(
            f"--host {host}: who can reach this may run programs here; set {TOKEN} to a secret that clients know, too"
        )
    server = make_server(host, port, token)
    print(f"code sandbox: {describe_sandbox()}")
    print(f"listening on http://{host}:{server.server_port}", flush=True)
    with server:
        server.serve_forever()

"""`unmask sandbox`, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request

from tests.recipes import unmask


def test_check() -> None:
    result = unmask("sandbox", "check")
    assert result.returncode == 0, result.stderr
    assert "protections" in result.stdout
    assert "short programs per second" in result.stdout


def test_serve_until_interrupted() -> None:
    command = [sys.executable, "-m", "unmask", "sandbox", "serve", "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "UNMASK_SANDBOX_TOKEN": ""})
    assert server.stdout is not None
    assert server.stdout.readline().startswith("code sandbox: ")
    url = server.stdout.readline().removeprefix("listening on ").strip()
    job = {"program": "print(1)", "tests": {"test_method": "stdio", "test_input": [""], "test_output": ["1"]}, "limits": {}}
    with urllib.request.urlopen(f"{url}/run", json.dumps(job).encode(), timeout=60) as reply:
        assert json.load(reply) == {"results": [[True, "passed"]]}
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 130
    server.stdout.close()


def test_an_open_door_is_refused(monkeypatch) -> None:
    result = unmask("sandbox", "serve", "--host", "0.0.0.0")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --host 0.0.0.0: who can reach this may run programs here")
    monkeypatch.setenv("UNMASK_SANDBOX_TOKEN", "x")
    result = unmask("sandbox", "serve", "--host", "no.such.host.invalid")
    assert result.returncode == 2
    assert "cannot listen there" in result.stderr

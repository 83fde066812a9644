"""`unmask sandbox`, as a user runs it."""

from __future__ import annotations

import json
import signal
import urllib.request

from tests.recipes import start, unmask


def test_check() -> None:
    result = unmask("sandbox", "check")
    assert result.returncode == 0, result.stderr
    assert "protections" in result.stdout
    assert "short programs per second" in result.stdout


def test_serve_until_interrupted() -> None:
    with start("sandbox", "serve", "--port", "0", UNMASK_SANDBOX_TOKEN="") as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("code sandbox: ")
        url = server.stdout.readline().removeprefix("listening on ").strip()
        tests = {"test_method": "stdio", "test_input": [""], "test_output": ["1"]}
        job = {"program": "print(1)", "tests": tests, "limits": {}}
        with urllib.request.urlopen(f"{url}/run", json.dumps(job).encode(), timeout=60) as reply:
            assert json.load(reply) == {"results": [[True, "passed"]]}
        server.send_signal(signal.SIGINT)
        assert server.wait(30) == 130


def test_an_open_door_is_refused(monkeypatch) -> None:
    result = unmask("sandbox", "serve", "--host", "0.0.0.0")
    assert result.returncode == 2
    assert result.stderr.startswith("error: --host 0.0.0.0: who can reach this may run programs here")
    monkeypatch.setenv("UNMASK_SANDBOX_TOKEN", "x")
    result = unmask("sandbox", "serve", "--host", "no.such.host.invalid")
    assert result.returncode == 2
    assert "cannot listen there" in result.stderr

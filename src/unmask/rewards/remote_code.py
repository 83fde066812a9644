"""Running programs on another machine: what is asked of it, over HTTP, and the server that answers.

    POST URL/run   {"program": ..., "tests": {...}, "limits": {...}}   ->   {"results": [[passed, reason], ...]}
    GET  URL/      ->   {"unmask": version, "protections": "..."}

With a token, every request carries it (`Authorization: Bearer TOKEN`).
"""

from __future__ import annotations

import asyncio
import hmac
import json
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from unmask import __version__
from unmask.errors import UnmaskError
from unmask.rewards.code_tests import CodeLimits, TestResult, describe_sandbox, run_code_tests
from unmask.types import CodeTests

_TRIES, _PAUSE_S = 5, 1.0
_LARGEST_BODY = 1 << 28


class RemoteSandbox:
    """A server, named by its URL. A server that cannot be reached ends the run: no program is at fault for that."""

    def __init__(self, url: str, token: str, num_workers: int):
        self.url, self._token = url.rstrip("/"), token
        self._slots = asyncio.Semaphore(num_workers)
        self._protections = ""

    async def start(self) -> None:
        """Raises `UnmaskError` where there is no such server."""
        self._protections = str((await self._ask("/", None, 60.0)).get("protections"))

    async def close(self) -> None:
        """Nothing stays open."""

    def describe(self) -> str:
        return f"{self.url}: {self._protections}"

    async def run_tests(self, program: str, tests: CodeTests, limits: CodeLimits) -> list[TestResult]:
        """As `code_tests.run_tests`."""
        wanted = {name: getattr(limits, name) for name in CodeLimits.model_fields}  # and not those of a subclass
        num = len(tests.test_list) or len(tests.test_input)
        patience = 120 + num * (10 * (tests.test_time_limit or limits.time_s) + 5)
        async with self._slots:
            job = {"program": program, "tests": tests.model_dump(mode="json"), "limits": wanted}
            reply = await self._ask("/run", job, patience)
        try:
            results = [TestResult(passed is True, str(reason)) for passed, reason in reply["results"]]
        except (KeyError, TypeError, ValueError):
            results = []
        if len(results) != num:
            raise UnmaskError(f"{self.url}: gave no results for {num} tests; is it an `unmask sandbox serve`?")
        return results

    async def _ask(self, path: str, body: Any, timeout_s: float) -> dict[str, Any]:
        for left in reversed(range(_TRIES)):
            try:
                return await asyncio.to_thread(self._send, path, body, timeout_s)
            except urllib.error.HTTPError as error:
                said = error.read(300).decode(errors="replace")
                if error.code < 500 or not left:
                    raise UnmaskError(f"{self.url}: refused with {error.code} ({' '.join(said.split())})") from None
            except (OSError, ValueError) as error:
                if not left:
                    raise UnmaskError(f"{self.url}: no code sandbox answers there ({error})") from None
            await asyncio.sleep(_PAUSE_S * (_TRIES - left))
        raise AssertionError

    def _send(self, path: str, body: Any, timeout_s: float) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._token}"} if self._token else {})
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=timeout_s) as reply:
            answer = json.load(reply)
        if not isinstance(answer, dict):
            raise ValueError("its answer is no JSON object")
        return answer


def make_server(host: str, port: int, token: str) -> ThreadingHTTPServer:
    """A server that runs programs for whoever can reach it and knows the token; `serve_forever` starts it.

    Raises `UnmaskError` for an address that cannot be used. Port 0 = any that is free.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.is_allowed():
                self.reply(200, {"unmask": __version__, "protections": describe_sandbox()})

        def do_POST(self) -> None:
            if not self.is_allowed():
                return
            try:
                size = int(self.headers.get("Content-Length") or 0)
                if size > _LARGEST_BODY:
                    raise UnmaskError(f"a request of {size} bytes is too large")
                job = json.loads(self.rfile.read(size))
                results = run_code_tests(job["program"], job["tests"], job["limits"])
            except (UnmaskError, ValueError, KeyError, TypeError, AttributeError) as error:
                return self.reply(400, {"error": f"{type(error).__name__}: {error}"})
            self.reply(200, {"results": results})

        def is_allowed(self) -> bool:
            sent = self.headers.get("Authorization", "")
            if token and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
                self.close_connection = True  # what it sent is not read
                self.reply(401, {"error": "wrong or no token"})
                return False
            return True

        def reply(self, code: int, answer: Any) -> None:
            data = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Requests are not news."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise UnmaskError(f"{host}:{port}: cannot listen there ({error})") from None
    server.daemon_threads = True
    return server

"""A client that hides nothing: standard library only, one connection for each request."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

JSON = {"Content-Type": "application/json"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def data(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Of an answer that is one; its form is checked."""
        assert self.status >= 400, self.text
        assert self.headers["content-type"] == "application/json"
        assert set(self.data) == {"error"}
        error = self.data["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
        assert "\n" not in error["message"]
        assert isinstance(error["type"], str)
        assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code"))
        return error

    @property
    def events(self) -> list[dict[str, Any]]:
        """Of a stream that came to its end."""
        assert (self.status, self.headers["content-type"]) == (200, "text/event-stream; charset=utf-8"), self.text
        *events, done, rest = self.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


class Client:
    def __init__(self, address: str, key: str = ""):
        self.host, _, port = address.partition(":")
        self.port, self.key = int(port), key

    def with_key(self, key: str) -> Client:
        return Client(f"{self.host}:{self.port}", key)

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """body: bytes as they are, all else as JSON."""
        given = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        if body is not None:
            given |= JSON
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        try:
            connection.request(method, path, body, {**given, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.request("POST", path, body, headers)

    def chat(self, content: str = "hello", **fields: Any) -> Answer:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields})

    def complete(self, prompt: Any = "hello", **fields: Any) -> Answer:
        return self.post("/v1/completions", {"prompt": prompt, **fields})

    # Below HTTP

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def raw(self, data: bytes) -> Answer:
        """Bytes as they are, and the answer to them; the connection is closed by us."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_answer(connection)

    def begin(self, **fields: Any) -> socket.socket:
        """A stream whose first bytes have come, and are not read any further."""
        connection = self.connect()
        body = json.dumps({"prompt": "hello", "stream": True, **fields}).encode()
        key = [f"Authorization: Bearer {self.key}"] if self.key else []
        connection.sendall(head("POST", "/v1/completions", len(body), *key) + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        return connection


def head(method: str, path: str, length: int | None = None, *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *more]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def read_answer(connection: socket.socket) -> Answer:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def read_all(connection: socket.socket) -> bytes:
    """Up to the end of the connection, however it comes."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def took(work: Callable[[], Any]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin

"""What goes wrong with a request, as an HTTP status and a body in OpenAI's form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# What OpenAI calls the kinds of errors, by status; others are "invalid_request_error".
_TYPES = {
    401: "authentication_error", 403: "permission_error", 408: "timeout_error", 429: "rate_limit_error",
    500: "server_error", 503: "server_error", 504: "timeout_error",
}  # fmt: skip


_LONGEST = 1000  # characters of what an answer repeats of its request


class ApiError(Exception):
    """message: one line, cut where it is long. param: the field of the request that is wrong. code: for programs, where there
    is one."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.code = status, code
        self.message, self.param = _short(" ".join(message.split())), param if param is None else _short(param)
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error")

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def encode(self) -> bytes:
        """The body as JSON. What a message repeats of a request may hold half characters, which UTF-8 has no bytes for."""
        return json.dumps(self.body()).encode("ascii")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "..."

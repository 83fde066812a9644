"""What every request passes before the application sees it: keys, the size and the time of its body; and what every answer
passes on its way out: no error leaves without a body in OpenAI's form."""

from __future__ import annotations

import asyncio
import hmac
import re
import sys
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from unmask.serve.errors import ApiError
from unmask.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAX_DRAINED = 64 * 2**20  # bytes of a body that is too large; a client that is still sending would not hear the answer
# Of a body: what the event loop reads in some 10 ms. Values beside a prompt of as many tokens as the context has.
_MAX_VALUES, _MAX_TOKENS, _MAX_KEYS, _MAX_LISTS, _MAX_TEXTS = 50_000, 100_000, 20_000, 20_000, 50_000
_TEXT = re.compile(rb'"[^"]*"')


class Gate:
    """ASGI middleware. api_keys, admin_keys: empty = `/v1` is open to all, `/admin` to none. hosts: empty = any."""

    def __init__(
        self, app: App, metrics: Metrics, *, api_keys: Sequence[str], admin_keys: Sequence[str], max_body: int,
        body_timeout_s: float, routes: Sequence[str], hosts: Sequence[str] = (),
    ):  # fmt: skip
        self.app, self.metrics, self.routes = app, metrics, frozenset(routes)
        self.api_keys, self.admin_keys = list(api_keys), list(admin_keys)
        self.hosts = frozenset(host.lower() for host in hosts)
        self.max_body, self.body_timeout_s = max_body, body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status: int | None = None
        arrived = time.monotonic()

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check_host(scope)
            key = self._check_key(scope)
            scope.setdefault("state", {}).update(api_key=key, arrived=arrived)
            body = await self._read(scope, receive)
            if body is None:
                self.metrics.disconnects.inc()
                return
            await self.app(scope, _replay(body, receive), watched)
        except ApiError as error:
            self.metrics.errors.labels(error.type).inc()
            if status is None:
                await send_error(watched, error)
        except asyncio.CancelledError:  # the server has ended
            if status is None:
                await send_error(watched, ApiError(503, "the server has ended", headers={"Connection": "close"}))
        except Exception:
            traceback.print_exc(file=sys.stderr)
            if status is None:
                await send_error(watched, ApiError(500, "the server has a defect; its log has the details"))
        finally:
            if status is not None:
                route = scope["path"] if scope["path"] in self.routes else "other"  # not as many labels as there are paths
                self.metrics.requests.labels(route, str(status)).inc()

    def _check_host(self, scope: Scope) -> None:
        """A page from elsewhere can give its own name this machine's address, and is then no stranger to a browser."""
        name = _header(scope, b"host").decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        if self.hosts and name not in self.hosts:
            raise ApiError(421, f"the server is not called {name!r}: set server.allowed_hosts where it is")

    def _check_key(self, scope: Scope) -> str:
        """The request's key, "" where none is needed. Raises `ApiError`."""
        path = scope["path"]
        is_admin = path.startswith("/admin")
        if not is_admin and not (path.startswith("/v1") and self.api_keys):
            return ""
        if is_admin and not self.admin_keys:
            raise ApiError(403, "there is no admin key: give the server one (--admin-key-file, or UNMASK_ADMIN_KEY)")
        given = _header(scope, b"authorization")
        scheme, _, key = given.partition(b" ")
        known = self.admin_keys if is_admin else self.api_keys
        # All of them are compared, whichever fits: the time that it takes tells nothing.
        fits = [hmac.compare_digest(key.strip(), one.encode()) for one in known]
        if scheme.lower() != b"bearer" or not any(fits):
            what = "the admin key" if is_admin else "an API key"
            said = "it is not a known one" if given else "there is none"
            raise ApiError(
                401, f"this needs {what}, as the header 'Authorization: Bearer KEY'; {said}", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        return known[fits.index(True)]

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None: the client has gone away. Raises `ApiError`."""
        parts, size = [], 0
        said, waits = _header(scope, b"content-length"), _header(scope, b"expect").lower() == b"100-continue"
        if said.isdigit() and int(said) > (self.max_body if waits else _MAX_DRAINED):
            raise self._too_large(closes=True)
        try:
            async with asyncio.timeout(self.body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size <= self.max_body:
                        parts.append(part)
                    if not message.get("more_body") or size > _MAX_DRAINED:
                        break
        except TimeoutError:
            if size <= self.max_body:
                raise ApiError(
                    408, f"the request's body did not arrive within {self.body_timeout_s:g} s", headers={"Connection": "close"}
                ) from None
            raise self._too_large(closes=True) from None
        if size > self.max_body:
            raise self._too_large(closes=size > _MAX_DRAINED)
        return b"".join(parts)

    def _too_large(self, *, closes: bool) -> ApiError:
        return ApiError(
            413, f"the request's body has more than {self.max_body:,} bytes, which is the limit here",
            headers={"Connection": "close"} if closes else {},
        )  # fmt: skip


def crowding(body: bytes, max_context: int) -> str:
    """What there is too much of in some JSON; "" = nothing."""
    limits = (
        (b",", _MAX_VALUES + min(max_context, _MAX_TOKENS), "values"),
        (b":", _MAX_KEYS, "keys"),
        (b"[{", _MAX_LISTS, "lists and objects"),
    )
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left of quotes stands around texts
    if plain.count(b'"') // 2 > _MAX_TEXTS:
        return f"the request's body has more than {_MAX_TEXTS:,} texts, which is the limit here"
    outside = body
    for marks, limit, what in limits:
        if _count(outside, marks) > limit and outside is body:  # texts may have as many as they like
            outside = _TEXT.sub(b"", plain)
        if _count(outside, marks) > limit:
            return f"the request's body has more than {limit:,} {what}, which is the limit here"
    return ""


def _count(body: bytes, marks: bytes) -> int:
    return sum(body.count(mark) for mark in marks)


def _header(scope: Scope, name: bytes) -> bytes:
    """The first of this name, "" where there is none."""
    return next((bytes(value).strip() for key, value in scope["headers"] if key == name), b"")


def _replay(body: bytes, receive: Receive) -> Receive:
    is_told = False

    async def replayed() -> MutableMapping[str, Any]:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


async def send_error(send: Send, error: ApiError) -> None:
    """An error as a whole answer."""
    body = error.encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})

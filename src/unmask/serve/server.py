"""Runs the server: a socket, uvicorn, and an end that leaves nobody hanging. The one importer of uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from unmask.config import ServerConfig, ServeRecipe
from unmask.data.chat import ChatTokenizer
from unmask.engine import AsyncEngine
from unmask.engine.aio import Link
from unmask.errors import UnmaskError
from unmask.models.spec import ModelSpec
from unmask.serve.api import create_app
from unmask.serve.engine_process import Source
from unmask.serve.errors import ApiError
from unmask.serve.gate import App
from unmask.serve.service import Service

_ENDED = "the server has ended"
_MAX_HEAD = 2**14  # bytes of a request before its body
_LAST_WORDS_S = 1.0  # after a second signal, for what is told to those in flight
_NUM_FILES = 65536  # connections that may be open, as far as the system lets us


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound. Raises `UnmaskError`."""
    sock = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except (OSError, UnicodeError) as error:
        if sock is not None:
            sock.close()
        reason = getattr(error, "strerror", None) or error
        raise UnmaskError(f"cannot listen on {host}, port {port}: {reason}; choose another") from None
    return sock


def address_of(sock: socket.socket) -> str:
    """As a URL."""
    host, port, *_ = sock.getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def serve(
    link: Link, sock: socket.socket, *, tokenizer: ChatTokenizer, spec: ModelSpec, recipe: ServeRecipe, source: Source,
    name: str, make_page: Callable[[Service], str], find: Callable[[str | None], Path], api_keys: Sequence[str],
    admin_keys: Sequence[str], say: Callable[[str], None],
) -> bool:  # fmt: skip
    """Until SIGINT or SIGTERM, or until the engine has ended; False: that was it.

    What is in flight then has `shutdown_timeout_s` to end, and is told off after it; at once after a second signal.
    """
    _raise_file_limit()
    async with AsyncEngine(link) as engine:
        service = Service(engine, tokenizer, spec, recipe, source, name)
        app = create_app(
            service,
            page=make_page(service),
            find=find,
            api_keys=api_keys,
            admin_keys=admin_keys,
            hosts=hosts_of(sock, recipe.server),
        )
        server = _Server(uvicorn_config(app, recipe.server), service, say, f"serving {name} at {address_of(sock)}")
        # What is there by now stays: to look through all of it for garbage would hold the loop up for a tenth of a second.
        gc.collect()
        gc.freeze()
        watching = asyncio.create_task(service.watch())
        ending = asyncio.create_task(_end_with(engine, server))
        try:
            await server.serve(sockets=[sock])
        finally:
            is_well = engine.is_running
            for task in (watching, ending):
                task.cancel()
            await asyncio.gather(watching, ending, return_exceptions=True)
    return is_well


def hosts_of(sock: socket.socket, limits: ServerConfig) -> Sequence[str]:
    """The names by which a server may be called; empty = any."""
    if limits.allowed_hosts:
        return () if "*" in limits.allowed_hosts else limits.allowed_hosts
    host = sock.getsockname()[0]
    return (host, "localhost", "127.0.0.1", "::1") if is_loopback(host) else ()


def is_loopback(host: str) -> bool:
    return ipaddress.ip_address(host.partition("%")[0]).is_loopback


def uvicorn_config(app: App, limits: ServerConfig) -> uvicorn.Config:
    class Protocol(_Protocol):
        begin_timeout_s, write_timeout_s = limits.body_timeout_s, limits.write_timeout_s

    return uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="off", log_level="critical", access_log=False, server_header=False,
        backlog=2048, h11_max_incomplete_event_size=_MAX_HEAD, timeout_keep_alive=max(1, round(limits.keep_alive_s)),
        timeout_graceful_shutdown=round(limits.shutdown_timeout_s) + 5,  # after ours, for what does not listen
    )  # fmt: skip


class _Server(uvicorn.Server):
    """Says that it ends, and takes nothing new then."""

    def __init__(self, config: uvicorn.Config, service: Service, say: Callable[[str], None], greeting: str):
        super().__init__(config)
        self._service, self._say, self._greeting = service, say, greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._say(self._greeting)  # not before: who reads it may connect

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but the signals end here: the command returns as usual."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        for number in numbers:
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            self._service.engine.fail_all(_ENDED)
            asyncio.get_running_loop().call_later(_LAST_WORDS_S, setattr, self, "force_exit", True)
        else:
            self.end()

    def end(self) -> None:
        """Takes nothing new from now on; what is in flight has some time."""
        num = self._service.admission.num_answers
        self._say(f"ending; {num} answer{'' if num == 1 else 's'} under way" if num else "ending")
        self._service.is_ending = self.should_exit = True
        limit = self._service.limits.shutdown_timeout_s
        asyncio.get_running_loop().call_later(limit, self._service.engine.fail_all, _ENDED)


class _Protocol(H11Protocol):
    """uvicorn's protocol, for clients that begin a request and do not end it, or do not take their answer, and for what is no
    HTTP."""

    begin_timeout_s: float
    write_timeout_s: float
    _begin: asyncio.TimerHandle | None = None
    _writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # writing is paused as long as there is something that was not taken
        self._watch_request()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # answered before it was read
            self._watch_request()

    def connection_lost(self, exc: Exception | None) -> None:
        _cancel(self._begin)
        _cancel(self._writing)
        super().connection_lost(exc)

    def _watch_request(self) -> None:
        """One that is being waited for, on a new connection or after its first bytes; or the rest of one that is answered.
        What the application reads has limits there."""
        is_rest = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
        if self.conn.their_state is not h11.IDLE and not is_rest:
            _cancel(self._begin)
            self._begin = None
        elif self._begin is None:
            self._begin = self.loop.call_later(self.begin_timeout_s, self._end_request)

    def _end_request(self) -> None:
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(408, f"the request did not arrive within {self.begin_timeout_s:g} s")
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._writing)

    def _watch_writing(self, before: float = float("inf")) -> None:
        """before: bytes that were left the last time. A client that takes nothing at all is cut off."""
        left = self.transport.get_write_buffer_size()
        if left < before:
            self._writing = self.loop.call_later(self.write_timeout_s, self._watch_writing, left)
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        if len(self.conn.trailing_data[0]) > _MAX_HEAD:
            self._refuse(431, "the head of the request is too long")
        else:
            self._refuse(400, f"this is no valid HTTP request ({msg.rstrip('.')})")

    def _refuse(self, status: int, message: str) -> None:
        """An answer without the application, and the connection's end."""
        body = ApiError(status, message).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode("ascii") + body)
            self.transport.close()


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


async def _end_with(engine: AsyncEngine, server: _Server) -> None:
    """The server ends when its engine does: whoever started it may start it again."""
    while engine.is_running:
        await asyncio.sleep(0.5)
    if not server.should_exit:
        server.end()


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _NUM_FILES if hard == resource.RLIM_INFINITY else min(hard, _NUM_FILES)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def keys_from(file: Path | None, variable: str) -> list[str]:
    """Keys of a file, one a line, and of an environment variable, separated by commas. Raises `UnmaskError`."""
    texts = os.environ.get(variable, "").split(",")
    if file is not None:
        try:
            texts += file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UnmaskError(f"{file}: cannot be read ({error})") from None
        if not any(text.strip() for text in texts):
            raise UnmaskError(f"{file}: has no key; give one a line")
    keys = [text.strip() for text in texts if text.strip()]
    if bad := next((key for key in keys if not key.isascii() or not key.isprintable() or " " in key), None):
        raise UnmaskError(f"key {bad[:4]!r}...: keys are of printable ASCII characters, without blanks")
    return keys

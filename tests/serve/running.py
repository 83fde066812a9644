"""Servers to test: the command as a process, or the server in a thread of this one."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from tests.recipes import start
from tests.serve.client import Client
from tests.serve.models import tokenizer
from unmask.config import ServeRecipe, load_recipe
from unmask.engine import AsyncEngine, Engine
from unmask.engine.aio import _ThreadLink
from unmask.engine.worker import Worker
from unmask.models.checkpoint import load_model
from unmask.serve.api import create_app
from unmask.serve.engine_process import Source
from unmask.serve.server import _Server, address_of, listen, uvicorn_config
from unmask.serve.service import Service

PATIENCE_S = 180  # for what takes a second on a machine with nothing else to do


def wait_until(holds: Any, what: str, seconds: float = PATIENCE_S) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.02)


class Running:
    """What both kinds have: an address, and a state to come back to."""

    client: Client

    def assert_idle(self) -> None:
        """Alive, and nothing is left of any request."""
        wait_until(lambda: self.num("answers_under_way") == 0, "no answers under way")
        wait_until(lambda: self.num("kv_pages_used") == 0, "no pages used")
        assert self.num("requests_running") == self.num("requests_waiting") == 0
        assert self.client.get("/health").status == 200

    def num(self, name: str) -> float:
        text = self.client.get("/metrics").text
        return float(re.search(rf"^unmask_{name} (\S+)$", text, re.MULTILINE).group(1))  # type: ignore[union-attr]


class Served(Running):
    """The command. words: more of it. stderr is read all the time: `lines`."""

    def __init__(self, folder: Path | str, *words: object, **environment: str):
        self.folder = Path(folder)
        self.process = start("serve", folder, "--port", 0, "--threads", 1, "--name", "tiny", *words, **environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_until(lambda: self._address() or self.process.poll() is not None, "served or ended")
        assert self._address(), self.lines
        self.client = Client(self._address())
        self.engine = psutil.Process(self.process.pid).children()[0]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def _address(self) -> str:
        return next((line.rpartition(" at http://")[2] for line in self.lines if line.startswith("serving ")), "")

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code; nothing of it is left."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self.assert_nothing_left()
        return code

    def assert_nothing_left(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self.engine.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.process.stdout.close()
        self.process.stderr.close()


class _Link(_ThreadLink):
    """To an engine in a thread that loads weights as the one in a process does."""

    def start(self, deliver: Any) -> None:
        def run() -> None:
            Worker(self._engine, self._take, deliver, lambda source: source.load_like(self._engine.model)).run()
            deliver(None)

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()


class Local(Running):
    """The server in a thread, its engine in another one. limits: of the engine, or with a prefix `server_` of the server."""

    def __init__(
        self, folder: Path, *words: str, api_keys: tuple[str, ...] = (), admin_keys: tuple[str, ...] = (),
        hosts: tuple[str, ...] = (), **limits: Any,
    ):  # fmt: skip
        self.folder, self.said = folder, list[str]()
        more = [f"server.{k[7:]}={v}" if k.startswith("server_") else f"engine.{k}={v}" for k, v in limits.items()]
        self.recipe = load_recipe(ServeRecipe, [], [*words, *more])
        self._keys, self._hosts, self._is_up = (api_keys, admin_keys), hosts, threading.Event()
        self._sock = listen("127.0.0.1", 0)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._thread.start()
        assert self._is_up.wait(PATIENCE_S)
        self.client = Client(address_of(self._sock).removeprefix("http://"))

    async def _run(self) -> None:
        model = load_model(self.folder, dtype="float32")  # its own: it may get other weights
        self.engine = Engine(model, decode=tokenizer().decode, **self.recipe.engine.model_dump())
        async with AsyncEngine(_Link(self.engine)) as engine:
            self.loop = asyncio.get_running_loop()
            self.service = Service(engine, tokenizer(), model.spec, self.recipe, Source(self.folder), "tiny")
            api_keys, admin_keys = self._keys
            app = create_app(
                self.service, page="<p>", find=lambda path: Path(path or self.folder), api_keys=api_keys, admin_keys=admin_keys,
                hosts=self._hosts,
            )  # fmt: skip
            self.server = _Server(uvicorn_config(app, self.recipe.server), self.service, self._say, "serving")
            watching = asyncio.create_task(self.service.watch())
            await self.server.serve(sockets=[self._sock])
            watching.cancel()

    def _say(self, text: str) -> None:
        self.said.append(text)
        self._is_up.set()

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended already
            self.loop.call_soon_threadsafe(self.server.end)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def call(self, function: Any, *args: Any) -> Any:
        """In the server's loop."""
        self.loop.call_soon_threadsafe(function, *args)

    @property
    def num_connections(self) -> int:
        return len(self.server.server_state.connections)

    def longest_stall_s(self, work: Any) -> float:
        """How long the loop was away at most during some work: by its own time, not that of others on this machine."""
        longest, before, done = 0.0, float("inf"), threading.Event()

        def tick() -> None:
            nonlocal longest, before
            now = time.thread_time()
            longest, before = max(longest, now - before), now
            if not done.is_set():
                self.loop.call_later(0.002, tick)

        self.call(tick)
        work()
        done.set()
        return longest

    @property
    def num_tasks(self) -> int:
        """Of asyncio, this question's own among them."""

        async def count() -> int:
            return len(asyncio.all_tasks())

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(PATIENCE_S)

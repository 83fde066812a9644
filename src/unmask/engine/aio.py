"""The engine for programs that run on asyncio: it decodes in a thread of its own, and its news are awaited."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from unmask.engine.engine import Engine
from unmask.engine.request import RequestOutput
from unmask.engine.worker import Abort, Accepted, Add, Close, Command, News, Refused, Snapshot, Update, Updated, Worker
from unmask.errors import UnmaskError
from unmask.types import SamplingParams, Trace


class EngineFailedError(RuntimeError):
    """The engine, not the request, is at fault: it broke off, or is gone."""


class Link(Protocol):
    """Between an event loop and a `Worker` elsewhere."""

    def start(self, deliver: Callable[[list[News] | None], None]) -> None:
        """deliver: gets the news, in any thread; None = there will be none any more."""
        ...

    def send(self, command: Command) -> None:
        """Returns at once."""
        ...

    def join(self) -> None:
        """Waits for the worker's end, after `Close`."""
        ...


class _ThreadLink:
    """To a worker in a thread of this process."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()

    def start(self, deliver: Callable[[list[News] | None], None]) -> None:
        def run() -> None:
            try:
                Worker(self._engine, self._take, deliver).run()
            finally:
                deliver(None)

        self._thread = threading.Thread(target=run, name="unmask-engine", daemon=True)
        self._thread.start()

    def _take(self, waits: bool) -> list[Command]:
        taken = [self._commands.get()] if waits else []
        while not self._commands.empty():
            taken.append(self._commands.get())
        return taken

    def send(self, command: Command) -> None:
        self._commands.put(command)

    def join(self) -> None:
        self._thread.join()


class Decoding:
    """A request that the engine has accepted: an asynchronous iterator over its news, which end with its trace."""

    def __init__(self, engine: AsyncEngine, request_id: int):
        self.id = request_id
        self._engine, self._news = engine, asyncio.Queue[RequestOutput | Exception | None]()
        self.accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.is_over = False

    def __aiter__(self) -> Decoding:
        return self

    async def __anext__(self) -> RequestOutput:
        """Raises `UnmaskError` or `EngineFailedError` where the engine broke off."""
        if self.is_over and self._news.empty():
            raise StopAsyncIteration
        news = await self._news.get()
        if news is None:  # cancelled
            raise StopAsyncIteration
        if isinstance(news, Exception):
            raise news
        return news

    def cancel(self) -> None:
        """Takes the request out of the engine, if it is still there; its pages are free then."""
        if self.accepted.done() and not self.accepted.cancelled():
            self.accepted.exception()  # that nobody asked for any more
        if not self.is_over:
            self._engine._forget(self.id)
            self.is_over = True
            self._news.put_nowait(None)  # for a task that waits for news

    def tell(self, news: RequestOutput | Exception) -> None:
        self.is_over = isinstance(news, Exception) or news.trace is not None
        if not self.accepted.done():  # what comes before it is accepted refuses it
            assert isinstance(news, Exception)
            self.accepted.set_exception(news)
        else:
            self._news.put_nowait(news)


class AsyncEngine:
    """An engine that is shared by the tasks of an event loop. Their requests are decoded together.

        async with unmask.AsyncEngine(unmask.Engine(model)) as engine:
            async for news in engine.stream(prompt_ids, params):
                print(news.new_ids)

    engine: from now on used by nobody else; or a `Link` to one in another process. A trace is the one that `Engine.generate`
    returns for the same prompt and parameters, whatever else is decoded.
    """

    def __init__(self, engine: Engine | Link):
        self._link: Link = _ThreadLink(engine) if isinstance(engine, Engine) else engine
        self._requests: dict[int, Decoding] = {}
        self._updates: list[asyncio.Future[int]] = []
        self._last_id = 0
        self.is_running = False
        self.snapshot = Snapshot()

    async def __aenter__(self) -> AsyncEngine:
        loop = asyncio.get_running_loop()

        def deliver(news: list[News] | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._deliver, news)

        self.is_running = True
        self._link.start(deliver)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    @property
    def num_requests(self) -> int:
        return len(self._requests)

    async def submit(
        self, prompt_ids: Sequence[int], params: SamplingParams | None = None, *, reports_steps: bool = False, name: str = ""
    ) -> Decoding:
        """A request, once the engine has accepted it; whoever gets it reads it to its end, or cancels it.

        Raises `UnmaskError` for what is malformed or can never fit; `EngineFailedError` where there is no engine any more.
        """
        return (await self.submit_all([(prompt_ids, params)], reports_steps=reports_steps, name=name))[0]

    async def submit_all(
        self, prompts: Sequence[tuple[Sequence[int], SamplingParams | None]], *, reports_steps: bool = False, name: str = ""
    ) -> list[Decoding]:
        """As `submit`, of prompts with their parameters: all, or none and the first one's error."""
        if not self.is_running:
            raise EngineFailedError("the engine is not running")
        requests = []
        for prompt_ids, params in prompts:
            self._last_id += 1
            request = self._requests[self._last_id] = Decoding(self, self._last_id)
            requests.append(request)
            self._link.send(Add(request.id, list(prompt_ids), params or SamplingParams(), reports_steps, name))
        try:
            for request in requests:
                await request.accepted
        except BaseException:
            for request in requests:
                request.cancel()
            raise
        return requests

    async def stream(
        self, prompt_ids: Sequence[int], params: SamplingParams | None = None, *, reports_steps: bool = False
    ) -> AsyncGenerator[RequestOutput]:
        """News of one prompt as they come; the last have its trace. Closing the iterator, or cancelling, aborts the request."""
        request = await self.submit(prompt_ids, params, reports_steps=reports_steps)
        try:
            async for news in request:
                yield news
        finally:
            request.cancel()

    async def generate(self, prompt_ids: Sequence[int], params: SamplingParams | None = None) -> Trace:
        """The trace of one prompt. Raises as `submit` does, and `EngineFailedError` where the engine breaks off."""
        async with contextlib.aclosing(self.stream(prompt_ids, params)) as stream:
            async for news in stream:
                if news.trace is not None:
                    return news.trace
        raise AssertionError("the last news have a trace")

    async def update_weights(self, weights: Mapping[str, Tensor] | Any, *, policy_version: int | None = None) -> int:
        """New weights; requests that have begun are finished with the old ones, others wait. Returns the policy version.

        weights: as in `Engine.update_weights`, or what the worker's `load` understands. Raises `UnmaskError`.
        """
        if not self.is_running:
            raise EngineFailedError("the engine is not running")
        update: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._updates.append(update)
        self._link.send(Update(weights, policy_version))
        return await update

    def fail_all(self, message: str) -> None:
        """Takes out all requests; who waits for one gets `EngineFailedError`."""
        for request in list(self._requests.values()):
            self._forget(request.id)
            request.tell(EngineFailedError(message))

    async def close(self) -> None:
        """Ends the engine's thread; what is in flight fails."""
        if self.is_running:
            self._link.send(Close())
            await asyncio.to_thread(self._link.join)
            self._deliver(None)

    def _forget(self, request_id: int) -> None:
        if self._requests.pop(request_id, None) is not None and self.is_running:
            self._link.send(Abort(request_id))

    def _deliver(self, news: list[News] | None) -> None:
        if news is None:
            self._end()
            return
        for item in news:
            if isinstance(item, RequestOutput):
                self._tell(int(item.id), item, is_last=item.trace is not None)
            elif isinstance(item, Accepted):
                if (request := self._requests.get(item.id)) and not request.accepted.done():
                    request.accepted.set_result(None)
            elif isinstance(item, Refused):
                error = EngineFailedError(item.message) if item.is_fault else UnmaskError(item.message)
                self._tell(item.id, error, is_last=True)
            elif isinstance(item, Updated):
                update = self._updates.pop(0)
                if update.done():
                    continue
                if item.message:
                    update.set_exception(EngineFailedError(item.message) if item.is_fault else UnmaskError(item.message))
                else:
                    update.set_result(item.policy_version)
            else:
                self.snapshot = item

    def _tell(self, request_id: int, news: RequestOutput | Exception, *, is_last: bool) -> None:
        request = self._requests.get(request_id)
        if request is None:
            return  # cancelled meanwhile
        if is_last:
            del self._requests[request_id]
        request.tell(news)

    def _end(self) -> None:
        """Whoever still waits learns that there is nothing to come."""
        self.is_running = False
        for request in list(self._requests.values()):
            self._tell(request.id, EngineFailedError("the engine has ended"), is_last=True)
        for update in self._updates:
            if not update.done():
                update.set_exception(EngineFailedError("the engine has ended"))
        self._updates.clear()

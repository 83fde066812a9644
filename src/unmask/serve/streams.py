"""Answers while they come: server-sent events, sent as fast as the client takes them, ended when it goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any, TypeVar

from unmask.data.text_stream import TextStream
from unmask.engine import RequestOutput
from unmask.engine.aio import Decoding
from unmask.serve import answers
from unmask.serve.answers import Form
from unmask.serve.errors import ApiError
from unmask.serve.gate import Receive, Scope, Send
from unmask.serve.metrics import Metrics
from unmask.serve.protocol import ChatRequest, CompletionRequest
from unmask.serve.service import Job, Service
from unmask.types import Trace

T = TypeVar("T")
AnyRequest = ChatRequest | CompletionRequest
_LONG_EVENT = 2**12  # bytes: after one, others have their turn
_PIECE = 2000  # elements of a list that are written at once
_MANY_TOKENS = 1000  # whose log-probabilities or texts are written beside the event loop
_HEARTBEAT_S = 15.0  # what stands between server and client may cut a connection on which nothing is said
DONE = b"data: [DONE]\n\n"


class ClientGoneError(Exception):
    """Nobody reads the answer any more."""


async def whole_answer(service: Service, request: AnyRequest, key: str, form: Form, started: float) -> str:
    """The answer as one object, in JSON. Raises `ApiError`."""
    async with service.decoding(request, key, started) as (job, requests):
        has_text, found = [False] * len(requests), dict[int, Trace]()
        async with contextlib.aclosing(_merged(requests)) as news_of_all:
            async for index, news in news_of_all:
                service.count(job, news, is_first=not has_text[index] and bool(news.new_ids))
                has_text[index] |= bool(news.new_ids)
                if news.trace is not None:
                    found[index] = news.trace
        traces = [found[index] for index in range(len(requests))]
        choices = [
            await _beside(len(trace.canvas_ids), _choice, service, request, form, i, trace) for i, trace in enumerate(traces)
        ]
        rest = encode(form.answer(answers.usage(job.num_prompt_tokens, traces), service.checkpoint(traces[0])))
        return f'{rest[:-1]},"choices":[{",".join(choices)}]}}'


def _choice(service: Service, request: AnyRequest, form: Form, index: int, trace: Trace) -> str:
    logprobs = None
    if request.wants_logprobs:
        logprobs = form.logprobs(trace.response_ids, trace.logprobs[: trace.num_response_tokens], 0)
    extra = answers.facts(trace, service.checkpoint(trace), with_trace=request.wants_trace)
    write = encode_long if len(trace.canvas_ids) > _MANY_TOKENS else encode
    return write(form.choice(index, answers.answer_text(service.tokenizer, trace), trace.finish_reason, logprobs, extra))


async def _beside(num_tokens: int, work: Callable[..., T], *given: Any) -> T:
    """Beside the event loop, where it takes long."""
    result = await asyncio.to_thread(work, *given) if num_tokens > _MANY_TOKENS else work(*given)
    await asyncio.sleep(0)  # others have their turn
    return result


async def _written(num_tokens: int, event: dict[str, Any]) -> str:
    """As JSON; beside the event loop, where it takes long."""
    return await asyncio.to_thread(encode_long, event) if num_tokens > _MANY_TOKENS else encode(event)


async def chunks(service: Service, request: AnyRequest, key: str, form: Form, started: float) -> AsyncGenerator[str]:
    """The answer as the objects of a stream in JSON, each as soon as there is news. Raises `ApiError`."""
    form.has_usage = request.stream_options is not None and request.stream_options.include_usage
    async with service.decoding(request, key, started) as (job, requests):
        streams = [_ChoiceStream(service, job, form, index) for index in range(len(requests))]
        for stream in streams:
            num_tokens = len(job.prompt(stream.index))
            yield await _written(num_tokens, form.event([await _beside(num_tokens, stream.beginning)]))
        traces: list[Trace] = []
        async with contextlib.aclosing(_merged(requests)) as news_of_all:
            async for index, news in news_of_all:
                num_tokens = len(news.trace.canvas_ids) if news.trace is not None and request.wants_trace else len(news.new_ids)
                for part in streams[index].parts(news):
                    yield await _written(num_tokens, form.event([part]))
                if news.trace is not None:
                    traces.append(news.trace)
        if form.has_usage:
            yield encode(form.event([], answers.usage(job.num_prompt_tokens, traces)))


class _ChoiceStream:
    """One answer of a stream."""

    def __init__(self, service: Service, job: Job, form: Form, index: int):
        self.service, self.job, self.form, self.index = service, job, form, index
        self.text = TextStream(service.tokenizer, job.params[index].stop_strings)
        self.num_told = self.num_characters = 0
        self.logprobs: dict[int, float] = {}  # by canvas position

    def beginning(self) -> dict[str, Any]:
        if not self.job.request.wants_steps:
            return self.form.part(self.index, "", is_first=True)
        params, spec, prompt = self.job.params[self.index], self.service.spec, self.job.prompt(self.index)
        block_size, is_causal = params.block_size or spec.block_size, spec.attention == "block_causal"
        num_canvas = params.max_new_tokens
        if is_causal:
            num_canvas += -(len(prompt) + num_canvas) % block_size  # blocks are decoded whole
        start = answers.beginning(self.service.tokenizer, prompt, block_size, num_canvas, is_causal)
        return self.form.part(self.index, "", extra=start, is_first=True)

    def parts(self, news: RequestOutput) -> list[dict[str, Any]]:
        self.service.count(self.job, news, is_first=self.num_told == 0 and bool(news.new_ids))
        parts, wants = [], self.job.request
        if news.unmasked is not None:
            self.logprobs |= zip(news.unmasked.positions, news.unmasked.logprobs, strict=True)
            if wants.wants_steps:
                event = answers.step_event(self.service.tokenizer, news.unmasked)
                parts.append(self.form.part(self.index, None, extra=event))
        text = self.text.push(news.new_ids) if news.new_ids else ""
        if news.trace is not None:
            text += self.text.finish()
        logprobs = None
        if wants.wants_logprobs and news.new_ids:
            values = [self.logprobs[self.num_told + i] for i in range(len(news.new_ids))]
            logprobs = self.form.logprobs(news.new_ids, values, self.num_characters)
            self.num_characters += sum(map(len, self.service.tokenizer.pieces(news.new_ids)))
        self.num_told += len(news.new_ids)
        if text or logprobs:
            parts.append(self.form.part(self.index, text, logprobs=logprobs))
        if (trace := news.trace) is not None:
            extra = answers.facts(trace, self.service.checkpoint(trace), with_trace=wants.wants_trace)
            parts.append(self.form.part(self.index, None, trace.finish_reason, extra=extra))
        return parts


async def _merged(requests: Sequence[Decoding]) -> AsyncGenerator[tuple[int, RequestOutput]]:
    """(number of the request, its news) in the order they come."""
    if len(requests) == 1:
        async for news in requests[0]:
            yield 0, news
        return
    waiting = {asyncio.ensure_future(anext(request)): i for i, request in enumerate(requests)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                news = task.result()
                index = waiting.pop(task)
                yield index, news
                if news.trace is None:
                    waiting[asyncio.ensure_future(anext(requests[index]))] = index
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)  # others may have failed, too


class EventStream:
    """An ASGI answer: the objects of a generator as server-sent events.

    The first one is waited for before the status is sent, so that what is refused has its own. A client that goes away ends
    it; the generator is closed in any case.
    """

    def __init__(self, objects: AsyncGenerator[str], metrics: Metrics):
        self.objects, self.metrics, self.num_said = objects, metrics, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await unless_gone(self._send(send), receive)
        except (ClientGoneError, OSError):
            self.metrics.disconnects.inc()

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self.objects):
            await self._send_all(send)

    async def _send_all(self, send: Send) -> None:
        item = await anext(self.objects)  # raises before anything is sent
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"),
                   (b"x-accel-buffering", b"no")]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        heart = asyncio.create_task(self._beat(send))
        try:
            await self._put(send, item)
            async for item in self.objects:
                await self._put(send, item)
            last = DONE
        except ApiError as error:
            self.metrics.errors.labels(error.type).inc()
            last = b"data: " + error.encode() + b"\n\n"
        finally:
            heart.cancel()
        await send({"type": "http.response.body", "body": last})

    async def _beat(self, send: Send) -> None:
        """A comment now and then, as long as nothing else is said."""
        while True:
            before = self.num_said
            await asyncio.sleep(_HEARTBEAT_S)
            if self.num_said == before:
                await send({"type": "http.response.body", "body": b": waiting\n\n", "more_body": True})

    async def _put(self, send: Send, item: str) -> None:
        self.num_said += 1
        body = b"data: " + item.encode("ascii") + b"\n\n"
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if len(body) > _LONG_EVENT:
            await asyncio.sleep(0)  # others have their turn


def encode(item: Any) -> str:
    """JSON in ASCII: what a model writes may hold half characters, which UTF-8 has no bytes for."""
    return json.dumps(item, separators=(",", ":"))


def encode_long(item: Any) -> str:
    """The same in pieces: a single one of a long trace would hold up the event loop from any thread."""
    if isinstance(item, dict):
        return "{" + ",".join(f"{encode(str(key))}:{encode_long(value)}" for key, value in item.items()) + "}"
    if isinstance(item, list | tuple) and len(item) <= _PIECE and any(isinstance(one, dict) for one in item):
        return "[" + ",".join(map(encode_long, item)) + "]"
    if isinstance(item, list | tuple) and len(item) > _PIECE:
        pieces = (encode(item[i : i + _PIECE])[1:-1] for i in range(0, len(item), _PIECE))
        return "[" + ",".join(pieces) + "]"
    return encode(item)


async def unless_gone(work: Coroutine[Any, Any, T], receive: Receive) -> T:
    """What `work` returns; raises `ClientGoneError`, and cancels it, when the client goes away before."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, listener = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait((task, listener), return_when=asyncio.FIRST_COMPLETED)
        if not task.done() or task.cancelled():  # cancelled by its own time limit, as it waited for the client
            raise ClientGoneError
        return task.result()
    finally:
        for one in (task, listener):
            one.cancel()
        with contextlib.suppress(asyncio.CancelledError, ClientGoneError, Exception):
            await task

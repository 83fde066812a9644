"""From a request to the engine and back: what is asked of it, who is let in, what is counted. Of HTTP it knows the statuses."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from unmask.config import ServerConfig, ServeRecipe
from unmask.data.chat import ChatTokenizer
from unmask.engine import AsyncEngine, EngineFailedError, RequestOutput
from unmask.engine.aio import Decoding
from unmask.errors import UnmaskError
from unmask.evaluate.records import fingerprint
from unmask.models.spec import ModelSpec
from unmask.serve.admission import Admission
from unmask.serve.engine_process import Source
from unmask.serve.errors import ApiError
from unmask.serve.metrics import Metrics
from unmask.serve.protocol import RENAMED, ChatRequest, CompletionRequest, ReloadRequest
from unmask.types import Example, Message, SamplingParams, Trace

T = TypeVar("T")
_LONG_TEXT = 10_000  # characters of a request that are tokenised beside the event loop, not on it
_MAX_CHARACTERS = 128  # of a token: blanks in a row are the longest
_WINDOW_S = 10  # of the speed and of the loop's delay


@dataclass(slots=True)
class Job:
    """What a request asks for. prompts: token ids; params: of every answer, the answers to the first prompt first."""

    request: ChatRequest | CompletionRequest
    prompts: list[list[int]]
    params: list[SamplingParams]
    started: float

    def prompt(self, index: int) -> list[int]:
        """Of an answer."""
        return self.prompts[index * len(self.prompts) // len(self.params)]

    @property
    def num_prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))


class Service:
    """One model being served. engine: running, with the weights of `source`."""

    def __init__(
        self, engine: AsyncEngine, tokenizer: ChatTokenizer, spec: ModelSpec, recipe: ServeRecipe, source: Source, name: str
    ):
        self.engine, self.tokenizer, self.spec, self.recipe, self.source, self.name = (
            engine, tokenizer, spec, recipe, source, name
        )  # fmt: skip
        self.sampling, self.limits = recipe.sampling, recipe.server
        self.metrics = Metrics()
        self.admission = Admission(recipe.engine.max_sequences + recipe.server.max_queue, recipe.server.max_per_key)
        self.created = int(time.time())
        self._checkpoints = {0: name_of(source)}  # by policy version
        self._version = 0
        self.seed = recipe.seed if "seed" in recipe.model_fields_set else None
        self.is_ending = False
        self.max_context = context_of(recipe.server, spec)
        self._tokenizing = ThreadPoolExecutor(1, "unmask-tokenize")
        self._reloading = asyncio.Lock()
        self._num_tokens = 0
        self._seconds: deque[tuple[float, int, float]] = deque([(time.monotonic(), 0, 0.0)], maxlen=_WINDOW_S + 1)

    # What is asked

    def _check(self, request: ChatRequest | CompletionRequest) -> None:
        """What can be said of a request without looking at its text."""
        if request.model is not None and request.model != self.name:
            raise ApiError(
                404, f"the model {request.model!r} is not here; this server has {self.name!r}", param="model",
                code="model_not_found",
            )  # fmt: skip
        if (num := request.num_choices) > self.limits.max_choices:
            raise ApiError(400, f"{num} answers are asked for; this server gives at most {self.limits.max_choices}", param="n")

    async def _plan(self, request: ChatRequest | CompletionRequest, started: float) -> Job:
        """Raises `ApiError` for what cannot be decoded."""
        seed = next((s for s in (request.seed, self.seed) if s is not None), secrets.randbits(53))
        try:
            params = request.sampling(self.sampling, seed)
        except ValidationError as error:
            raise describe(error) from None
        is_chat = isinstance(request, ChatRequest)
        if is_chat and params.stop_token_ids is None and not params.ignore_eos:
            params = params.model_copy(update={"stop_token_ids": self.tokenizer.stop_ids(self.spec.eos_token_ids)})
        try:
            prompts = await self._prompts(request)
        except UnmaskError as error:
            raise ApiError(400, str(error), param="messages" if is_chat else "prompt") from None
        if (params.block_size or 1) > self.max_context:
            raise ApiError(400, f"the context has {self.max_context} tokens", param="unmask.block_size")
        fitting = [self._fit(params, len(prompt), is_given=request.limit is not None) for prompt in prompts]
        each = [params for params in fitting for _ in range(request.num_choices // len(prompts))]
        seeded = [params.model_copy(update={"seed": (seed + i) % 2**63}) for i, params in enumerate(each)]
        return Job(request, prompts, seeded, started)

    async def _prompts(self, request: ChatRequest | CompletionRequest) -> list[list[int]]:
        if isinstance(request, ChatRequest):
            roles = ["system" if message.role == "developer" else message.role for message in request.messages]
            turns = [Message(role=r, content=m.text) for r, m in zip(roles, request.messages, strict=True)]
            if self.limits.system_prompt and roles[0] != "system":
                turns.insert(0, Message(role="system", content=self.limits.system_prompt))
            example = Example(id="messages", messages=tuple(turns), response_prefix=self.limits.response_prefix)
            num_characters = sum(len(turn.content) + _LONG_TEXT // 100 for turn in turns)
            return [await self._beside(num_characters, self.tokenizer.prompt_ids, example)]
        num_characters = sum(len(prompt) for prompt in request.prompts if isinstance(prompt, str))
        encode = self.tokenizer.encode
        return [p if isinstance(p, list) else await self._beside(num_characters, encode, p) for p in request.prompts]

    async def _beside(self, num_characters: int, work: Callable[[T], list[int]], given: T) -> list[int]:
        """Beside the event loop, where it takes long."""
        if num_characters < _LONG_TEXT:
            return work(given)
        if num_characters > _MAX_CHARACTERS * self.max_context:  # it need not be tokenised to see that
            raise ApiError(
                400, f"{num_characters:,} characters are more than the context of {self.max_context} tokens",
                code="context_length_exceeded",
            )  # fmt: skip
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, work, given)

    def _fit(self, params: SamplingParams, num_prompt: int, *, is_given: bool) -> SamplingParams:
        """Within the model's context: a limit that nobody asked for is lowered to it."""
        room = self.max_context - num_prompt
        if room >= params.max_new_tokens:
            return params
        if is_given or room < 1 or room < params.min_tokens:
            raise ApiError(
                400, f"{num_prompt} prompt tokens and max_tokens {params.max_new_tokens} are more than the context of "
                f"{self.max_context} tokens", param="max_tokens", code="context_length_exceeded",
            )  # fmt: skip
        return params.model_copy(update={"max_new_tokens": room})

    # Decoding

    @asynccontextmanager
    async def decoding(
        self, request: ChatRequest | CompletionRequest, key: str, started: float
    ) -> AsyncIterator[tuple[Job, list[Decoding]]]:
        """A request's answers being decoded; at the end of the block those that are not finished are taken out.

        started: when it arrived, by the monotonic clock. Raises `ApiError` where there is no room, the engine refuses, or the
        time is over.
        """
        if self.is_ending:
            raise ApiError(503, "the server is about to end", headers={"Retry-After": "5"})
        self._check(request)
        requests: list[Decoding] = []
        with self.admission.place(key, request.num_choices):
            try:
                async with asyncio.timeout(self.limits.request_timeout_s):
                    job = await self._plan(request, started)
                    requests += await self.engine.submit_all(
                        [(job.prompt(index), params) for index, params in enumerate(job.params)], name="the request",
                        reports_steps=bool(request.stream) and (request.wants_steps or request.wants_logprobs),
                    )  # fmt: skip
                    self.metrics.prompt_tokens.inc(job.num_prompt_tokens)
                    yield job, requests
                    seconds = time.monotonic() - job.started
                    self.metrics.duration.observe(seconds)
                    self.admission.note_duration(seconds)
            except UnmaskError as error:
                raise ApiError(400, str(error)) from None
            except EngineFailedError as error:
                raise ApiError(503, str(error)) if self.is_ending else ApiError(500, f"the engine failed: {error}") from None
            except TimeoutError:
                raise ApiError(504, f"the answer took longer than {self.limits.request_timeout_s:g} s") from None
            finally:
                for one in requests:
                    one.cancel()

    def count(self, job: Job, news: RequestOutput, *, is_first: bool) -> None:
        """is_first: of an answer's committed tokens."""
        self._num_tokens += len(news.new_ids)
        self.metrics.tokens.inc(len(news.new_ids))
        if is_first:
            self.metrics.first_block.observe(time.monotonic() - job.started)
        if news.trace is not None:
            self.metrics.per_forward.observe(news.trace.tokens_per_forward)

    # Beside it

    async def reload(self, wanted: ReloadRequest, folder: Path) -> int:
        """Other weights of the same model; the policy version. Raises `ApiError`."""
        adapter = Path(wanted.adapter) if wanted.adapter else None if wanted.path else self.source.adapter
        source = Source(folder, adapter)
        async with self._reloading:
            if self.is_ending or not self.engine.is_running:
                raise ApiError(503, "the server is about to end" if self.is_ending else "the engine has ended")
            version = self._version + 1 if wanted.policy_version is None else wanted.policy_version
            if version in self._checkpoints:  # answers are told which weights they had by it
                raise ApiError(400, f"policy_version {version} has been used", param="policy_version")
            before = dict(self._checkpoints)
            try:
                self._checkpoints[version] = await asyncio.to_thread(name_of, source)  # known as soon as answers have it
                self._version = await self.engine.update_weights(source, policy_version=version)
            except (UnmaskError, OSError) as error:
                self._checkpoints = before
                raise ApiError(400, str(error)) from None
            except EngineFailedError as error:
                self._checkpoints = before
                raise ApiError(500, f"the engine failed: {error}") from None
            return version

    def checkpoint(self, trace: Trace | None = None) -> str:
        """What an answer was decoded with; without one, what the next ones will be."""
        return self._checkpoints[self._version if trace is None else trace.policy_version]

    async def watch(self) -> None:
        """Once a second: how late the event loop is, and how much has been decoded."""
        while True:
            worst = 0.0
            for _ in range(20):
                before = time.monotonic()
                await asyncio.sleep(0.05)
                worst = max(worst, time.monotonic() - before - 0.05)
            self._seconds.append((time.monotonic(), self._num_tokens, worst))

    def render_metrics(self) -> tuple[bytes, str]:
        (start, before, _), (now, after, _) = self._seconds[0], self._seconds[-1]
        speed = (after - before) / (now - start) if now > start else 0.0
        self.metrics.loop_lag.set(max(lag for _, _, lag in self._seconds))
        return self.metrics.render(self.engine.snapshot, speed, self.admission.num_answers)


def context_of(limits: ServerConfig, spec: ModelSpec) -> int:
    """Tokens of a prompt and its answer."""
    return limits.max_context or spec.rotary.max_positions or 2**31


def name_of(source: Source) -> str:
    """Folder and fingerprint of a checkpoint, and of its adapter."""
    folders = (source.folder,) if source.adapter is None else (source.folder, source.adapter)
    return "+".join(f"{folder.name}@{fingerprint(folder)}" for folder in folders)


def describe(error: ValidationError) -> ApiError:
    """What is wrong with the sampling parameters of a request, by their names in it."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    return describe_problems([{**p, "loc": tuple(map(_name_in_request, p["loc"]))} for p in problems])


def _name_in_request(part: int | str) -> int | str:
    if isinstance(part, int):
        return part
    other = {"max_new_tokens": "max_tokens", "stop_strings": "stop"}.get(part, part)
    return other if part in RENAMED else f"unmask.{part}"


def describe_problems(problems: Sequence) -> ApiError:
    """The first thing that is wrong with a request, and where, from pydantic's list of errors."""
    problem = max(problems, key=lambda p: (p["type"] == "extra_forbidden", len(p["loc"])))  # of several forms, the nearest
    *path, last = problem["loc"] or ("",)
    # Names of alternatives (list[str], str) stand in the places, too; field names have no such form. The last is a field's,
    # or the whole place is that of an alternative.
    parts = [p for p in path if not _is_alternative(p)]
    if problem["type"] == "extra_forbidden" or not _is_alternative(last):
        parts.append(last)
    where = ".".join(map(str, parts))
    if problem["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field {where!r}", param=where, code="unknown_parameter")
    if problem["type"] == "missing":
        return ApiError(400, f"field {where!r} is missing", param=where, code="missing_required_parameter")
    is_object = problem["type"] == "model_attributes_type"
    message = "should be a JSON object" if is_object else problem["msg"].removeprefix("Value error, ")
    return ApiError(400, f"{where or 'the body'}: {message}", param=where or None)


def _is_alternative(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int") or "[" in part)

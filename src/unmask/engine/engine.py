"""The engine: many requests, decoded together, each exactly as if it were alone."""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator, KeysView, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import numpy as np
from torch import Tensor, nn

from unmask.config import EngineLimits, check
from unmask.diffusion.remasking import get_strategy
from unmask.diffusion.sequence import Decode, make_sequence, one_per_prompt
from unmask.engine.memory import num_pages_in_budget
from unmask.engine.paged import pick_row_backend
from unmask.engine.pages import PagePool
from unmask.engine.request import Request, RequestId, RequestOutput, Row, StepUnmasked
from unmask.engine.runner import Runner
from unmask.engine.scheduler import Scheduler
from unmask.engine.stats import EngineStats
from unmask.engine.weights import check_weights, copy_weights
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.types import SamplingParams, Trace


class Engine:
    """Decodes requests with continuous batching: sequences join and leave at every step.

        traces = Engine(model).generate(prompts, params)

    or, one forward at a time, `add_request` and `step`. A sequence's tokens, step map and log-probabilities depend on its
    prompt, its parameters and the weights only, and are those of `unmask.generate` (full attention with cache "prefix"
    or "dual" aside, which are approximations that `generate` does not have).

    limits: see `EngineLimits`. decode: token ids to text, for stop strings. The model is used as it is, in its dtype and on
    its device; weights that are changed in place from outside are announced with `update_weights`. Not for several threads.
    """

    def __init__(self, model: Decoder, *, decode: Decode | None = None, **limits):
        self.limits = check(EngineLimits, limits, "Engine")
        self.model, self.decode, self.policy_version = model, decode, 0
        backend = pick_row_backend(self.limits.attention_backend, model)
        page_size = self.limits.page_size or (128 if model.device.type == "cuda" else 16)
        num_pages = self.limits.num_pages or num_pages_in_budget(model, page_size, self.limits.kv_memory_gb)
        pool = PagePool(num_pages, page_size)
        self.scheduler = Scheduler(
            pool, max_sequences=self.limits.max_sequences, max_tokens=self.limits.max_tokens_per_forward,
            use_prefix_cache=self.limits.use_prefix_cache, shares_last_block=not model.spec.shift_logits,
        )  # fmt: skip
        if self.limits.use_cuda_graphs and model.device.type != "cuda":
            raise UnmaskError(f"Engine: use_cuda_graphs needs a model on a GPU; this one is on {model.device}")
        self.runner = Runner(
            model, num_pages, page_size, self.limits.max_sequences, backend, use_cuda_graphs=self.limits.use_cuda_graphs
        )
        self._stats = EngineStats()
        self._requests: dict[RequestId, Request] = {}
        self._arrivals = 0
        self._inbox: list[RequestOutput] = []  # news that nobody has taken yet

    def add_request(
        self,
        prompt_ids: Sequence[int],
        params: SamplingParams | None = None,
        request_id: RequestId | None = None,
        *,
        name: str = "",
        reports_steps: bool = False,
    ) -> RequestId:
        """Queues a prompt; its id (a number unless one is given). `name` is what errors call it.

        reports_steps: there are news of every denoising step, with what it unmasked.
        Raises `UnmaskError` for what is malformed or can never fit.
        """
        if request_id is None:
            request_id = self._arrivals
            while request_id in self._requests:
                request_id += 1
        if request_id in self._requests:
            raise UnmaskError(f"request {request_id!r} is already being decoded; give another id")
        request = self.check(prompt_ids, SamplingParams() if params is None else params, request_id, name=name)
        request.reports_steps = reports_steps
        self.scheduler.add(request)
        self._arrivals += 1
        self._requests[request_id] = request
        return request_id

    def check(
        self, prompt_ids: Sequence[int], params: SamplingParams, request_id: RequestId = "check", *, name: str = ""
    ) -> Request:
        """What `add_request` would queue. Raises `UnmaskError` for what is malformed or can never fit."""
        name = name or f"request {request_id}"
        sequence = make_sequence(name, prompt_ids, params, self.model.spec, self.decode)
        get_strategy(params.remasking_strategy)
        request = Request(request_id, sequence, self._arrivals)
        self.scheduler.check(request, name)
        return request

    @property
    def has_work(self) -> bool:
        """Whether there are requests, or news that `step` has not returned yet."""
        return bool(self._requests or self._inbox)

    @property
    def has_begun(self) -> bool:
        """Whether there are requests in flight: some of their tokens are computed."""
        return any(r.is_begun for r in self._requests.values())

    def step(self, *, only_begun: bool = False) -> list[RequestOutput]:
        """One forward; the news of requests that have any.

        only_begun: others go on waiting. With it `while engine.has_begun: engine.step(only_begun=True)` leaves the engine
        ready for new weights, without a request that they meet in the middle.
        After an exception (an interruption, memory that runs out, NaNs, an error in `decode`) no sequence is changed, and
        stepping on goes on where it was.
        """
        if self.has_begun if only_begun else self._requests:
            self._step(only_begun=only_begun)
        news, self._inbox = self._inbox, []
        return news

    def generate(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> list[Trace]:
        """Decodes each prompt and returns its `Trace`, in order.

        params: one for all (then prompt i draws from seed + i), or one per prompt. Raises `UnmaskError` before anything is
        decoded if a prompt or its parameters are bad.
        """
        traces: dict[RequestId, Trace] = {}
        with self._own_requests(prompts, params) as ids:
            for output in self._run(ids):
                if output.trace is not None:
                    traces[output.id] = output.trace
        return [traces[request_id] for request_id in ids]

    def stream(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None = None
    ) -> Generator[tuple[int, RequestOutput]]:
        """As `generate`, but yields (index of the prompt, news) as soon as there are any. Closing it aborts what is left."""
        with self._own_requests(prompts, params) as ids:
            index = {request_id: i for i, request_id in enumerate(ids)}
            for output in self._run(ids):
                yield index[output.id], output

    @contextmanager
    def _own_requests(
        self, prompts: Sequence[Sequence[int]], params: SamplingParams | Sequence[SamplingParams] | None
    ) -> Iterator[list[RequestId]]:
        """Adds all or none; what is unfinished at the end (an interruption) is taken out again."""
        ids: list[RequestId] = []
        try:
            for prompt, p in zip(prompts, one_per_prompt(params, prompts), strict=True):
                ids.append(self.add_request(prompt, p, name=f"prompt {len(ids)}"))
            yield ids
        finally:
            for request_id in ids:
                if request_id in self._requests:
                    self.abort(request_id)
            self._take_news(set(ids))

    def _run(self, ids: Sequence[RequestId]) -> Iterator[RequestOutput]:
        """Steps until these requests have ended; news of others stay where `step` finds them."""
        mine = set(ids)
        while True:
            yield from self._take_news(mine)
            if not any(request_id in self._requests for request_id in mine):
                return
            self._step()

    def _take_news(self, ids: Collection[RequestId]) -> list[RequestOutput]:
        taken = [output for output in self._inbox if output.id in ids]
        self._inbox = [output for output in self._inbox if output.id not in ids]
        return taken

    def abort(self, request_id: RequestId) -> Trace:
        """Takes a request out; its trace so far, with finish_reason "abort". Raises `UnmaskError` for an unknown id."""
        if request_id not in self._requests:
            raise UnmaskError(f"request {request_id!r} is not being decoded")
        request = self._requests.pop(request_id)
        self.scheduler.remove(request)
        request.sequence.abort()
        return request.sequence.trace(request.policy_version)

    @property
    def request_ids(self) -> KeysView[RequestId]:
        """Of the requests that wait or are being decoded, by arrival."""
        return self._requests.keys()

    def update_weights(
        self,
        weights: Mapping[str, Tensor] | nn.Module | None = None,
        *,
        policy_version: int | None = None,
        in_flight: Literal["finish", "recompute"] = "finish",
    ) -> None:
        """New weights, copied into the model in place; what was computed with the old ones is forgotten.

        weights: a state dict with the model's names, or a live module of the same kind. None: the model's own weights have
            been changed already (a trainer's step on the same module).
        policy_version: stamped on traces from now on; None counts on from the present one.
        in_flight: requests that have begun are finished with the old weights first (`step` reports them), or start over
            with the new ones. Already changed weights can only be met by starting over.
        Raises `UnmaskError` naming the first tensor that does not fit; then nothing has changed.
        """
        if in_flight not in ("finish", "recompute"):
            raise UnmaskError(f"in_flight {in_flight!r} is unknown; known: finish, recompute")
        is_changed = weights is None or weights is self.model
        state = None if weights is None or is_changed else check_weights(self.model, weights)
        begun = [r for r in self._requests.values() if r.is_begun]
        if begun and in_flight == "finish":
            if is_changed:
                raise UnmaskError('the weights have changed under requests in flight; they can only start over: "recompute"')
            while self.has_begun:
                self._step(only_begun=True)
        else:
            for request in begun:
                if request.slot >= 0:
                    self.scheduler.preempt(request)
                request.sequence.restart()
                request.num_reported, request.is_restarted = 0, True
        if state is not None:
            copy_weights(self.model, state)
        self.scheduler.pool.clear()
        self.policy_version = self.policy_version + 1 if policy_version is None else policy_version

    @property
    def stats(self) -> EngineStats:
        """Counts so far; a copy."""
        return replace(
            self._stats,
            num_shared_tokens=self.scheduler.num_shared_tokens,
            num_preemptions=self.scheduler.num_preemptions,
            peak_pages=self.scheduler.peak_pages,
        )

    def _step(self, *, only_begun: bool = False) -> None:
        """One forward; its news go to the inbox one by one."""
        plan = self.scheduler.schedule(only_begun=only_begun)
        if not plan.rows:
            raise AssertionError("no row was scheduled")  # the scheduler's promise: the earliest request goes on
        try:
            result = self.runner.run(plan)
            denoised = [row.request for row in plan.rows if row.is_denoising]
            found = result.fetch(len(denoised)) if result is not None else []
        except BaseException:
            self._forget()
            raise
        self._count(plan.rows)
        for row in plan.rows:
            if row.request.sequence.step == 0:
                row.request.policy_version = self.policy_version
            self.scheduler.commit(row)
        for request, unmasked in zip(denoised, found, strict=True):
            unmasked.apply(request.sequence)
            if (output := self._news(request)) is not None:
                self._inbox.append(output)

    def _forget(self) -> None:
        """After a forward that was not completed, or computed NaNs: what the pages hold is not to be trusted."""
        for request in list(self.scheduler.running):
            self.scheduler.preempt(request)
        self.scheduler.pool.clear()
        self.runner.clear()

    def _news(self, request: Request) -> RequestOutput | None:
        s = request.sequence
        num_final = s.num_final()
        if num_final <= request.num_reported and s.finish_reason is None and not request.reports_steps:
            return None
        first = len(s.prompt_ids)
        new_ids = s.ids[first + request.num_reported : first + num_final].tolist()
        output = RequestOutput(request.id, new_ids, is_restart=request.is_restarted)
        if request.reports_steps:
            positions = np.flatnonzero(s.step_map == s.step - 1)
            values = (array[positions].tolist() for array in (s.ids, s.logprobs, s.confidences))
            output.unmasked = StepUnmasked(s.step - 1, (positions - first).tolist(), *values)
        request.num_reported, request.is_restarted = num_final, False
        if s.finish_reason is not None:
            output.trace = s.trace(request.policy_version)
            self.scheduler.remove(request)
            del self._requests[request.id]
            self._stats.num_finished += 1
            self._stats.num_response_tokens += s.num_response_tokens
        return output

    def _count(self, rows: list[Row]) -> None:
        stats = self._stats
        stats.num_forwards += 1
        num_denoising = sum(row.is_denoising for row in rows)
        stats.num_denoising_forwards += num_denoising
        stats.num_prefill_forwards += len(rows) - num_denoising
        stats.num_tokens += sum(row.num_tokens for row in rows)
        stats.num_prefill_tokens += sum(row.num_prefill_tokens for row in rows)

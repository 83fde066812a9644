"""Mathematical equality of the response's answer with the example's, through math-verify in worker processes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

from pydantic import Field

from unmask.errors import UnmaskError
from unmask.rewards.answers import RULES, Rule
from unmask.rewards.background import BackgroundLoop
from unmask.rewards.interface import Reward, RewardOptions, Score, is_cut, require_answer
from unmask.rewards.workers import Result, WorkerPool
from unmask.types import Example, Rollout

DEFAULT_RULES: tuple[Rule, ...] = ("hash", "answer_is", "whole", "last_expression")


class Verdict(NamedTuple):
    """correct: whether the answer is right. extracted: the answer found in the text, None without one. reason: in words."""

    correct: bool
    extracted: str | None
    reason: str


class Math(Reward):
    """1 if the response's answer equals the example's mathematically, else 0. A response cut at the length limit scores 0."""

    class Options(RewardOptions):
        fallbacks: tuple[Rule, ...] = Field(
            (), strict=False, description="rules, in this order, that find the answer of a response without `\\boxed{...}`"
        )
        wrong_reward: float = Field(0.0, ge=0, lt=1, description="for an answer that is given and wrong")
        time_limit: float = Field(5.0, gt=0, le=3600, description="seconds for one response, from the moment it is taken up")
        num_workers: int = Field(2, ge=1, le=1024, description="processes that compare at the same time")

    def __init__(self, options: Math.Options):
        super().__init__(options)
        self.pool = WorkerPool("unmask.rewards.equality", "make_judge", (), options.num_workers)

    def check(self, example: Example) -> None:
        require_answer(example)

    async def start(self) -> None:
        await self.pool.start()

    async def close(self) -> None:
        await self.pool.close()

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        if is_cut(rollout):
            return Score(0.0, "cut at the length limit")
        question = (rollout.text, example.answer, self.options.fallbacks)
        verdict = _verdict(await self.pool.run(question, self.options.time_limit))
        if verdict.correct:
            return Score(1.0, verdict.reason)
        return Score(0.0 if verdict.extracted is None else self.options.wrong_reward, verdict.reason)


def _verdict(result: Result) -> Verdict:
    if result.failure or result.error:
        return Verdict(False, None, result.failure or f"cannot be compared ({result.error})")
    return Verdict(*result.value)


class _Verifier:
    """One worker, for callers that are not asynchronous; it starts with the first question and ends with the process."""

    def __init__(self) -> None:
        self.loop = BackgroundLoop()
        self.pool = WorkerPool("unmask.rewards.equality", "make_judge", (), 1)
        try:
            self.loop.run(self.pool.start())
        except BaseException:
            self.loop.close()
            raise


_MOST_OVER_S = 0.8  # of a call over its time limit, on account of the process's start
_LEAST_S = 1.0  # for an answer, however long that took
_verifiers: dict[int, _Verifier] = {}  # by process: a fork has no thread of the one it comes from
_lock = threading.Lock()


def verify_math(text: str, gold: str, *, fallbacks: Sequence[Rule] = DEFAULT_RULES, time_limit: float = 5.0) -> Verdict:
    """Whether the answer in `text` equals the one in `gold`. Both are a whole solution or a bare answer.

    The answer is the last `\\boxed{...}` with balanced braces; without one, what the first of the `fallbacks` finds that finds
    anything: `hash` (`#### 18`), `answer_is` (`The answer is 18`, `A: 18`), `whole` (the text is nothing but an answer),
    `last_expression` (the last `$...$` or number), `last_number`. They look at the text alone, never at what would be right.

    It is compared in a worker process, which starts with the first call. time_limit: seconds from the moment it begins there;
    what takes longer, or ends the process, is not correct, and the reason says so. No call takes a second more, the first one
    included, which has less time where the process took long to start; but a second at least. Raises `UnmaskError` for an
    empty `gold` and where the parser (extra `math`) cannot be imported.
    """
    called_at = time.monotonic()
    if not gold.strip():
        raise UnmaskError("gold is empty; expected the right answer")
    if unknown := [rule for rule in fallbacks if rule not in RULES]:
        raise UnmaskError(f"unknown fallback {unknown[0]!r}; known: {', '.join(RULES)}")
    with _lock:
        if os.getpid() not in _verifiers:
            _verifiers[os.getpid()] = _Verifier()
        verifier = _verifiers[os.getpid()]
    left = time_limit + _MOST_OVER_S - (time.monotonic() - called_at)
    limit = min(time_limit, max(left, _LEAST_S))
    return _verdict(verifier.loop.run(verifier.pool.run((text, gold, tuple(fallbacks)), limit)))

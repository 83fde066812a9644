"""Scoring responses in worker processes, while others are still being decoded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait

import numpy as np

from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.rewards import RewardFn, Score, make_reward
from unmask.types import Example, Rollout

LARGEST_REWARD = 1e9  # what is larger is a mistake, and its square would overflow
_reward: RewardFn | None = None  # of this worker process


class RewardPool:
    """A reward and the processes that compute it; with `num_workers` 0, this process, when the result is asked for.

    Use as a context manager. Results do not depend on the number of workers, as long as the reward is a function of the
    rollout and its example: one that draws random numbers draws others in every process. `waited_s`: how long results were
    waited for after decoding had ended.
    """

    def __init__(self, plugin: Plugin, num_workers: int = 0):
        self.reward, self.num_workers = make_reward(plugin), num_workers
        self.waited_s = 0.0
        self._pool: ProcessPoolExecutor | None = None
        if num_workers:
            # Not by forking: threads of PyTorch and of the GPU's driver do not survive that.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin, initargs=(plugin,))

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def needs_pieces(self) -> bool:
        return getattr(self.reward, "needs_pieces", False)

    def submit(self, rollout: Rollout, example: Example) -> Callable[[], Score]:
        """Begins to score; the result is called for later. That call raises `UnmaskError` when a worker has died or the score
        is none, and what the reward raises."""
        if self._pool is None:
            return lambda: score(self.reward, rollout, example)
        try:
            future = self._pool.submit(_score, rollout, example)
        except BrokenProcessPool:
            raise _died(example) from None

        def result() -> Score:
            try:
                return future.result()
            except BrokenProcessPool:
                raise _died(example) from None

        return result


def _begin(plugin: Plugin) -> None:
    """Of a worker: Ctrl-C is for the process that started it, and it does not outlive that one."""
    global _reward
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _reward = make_reward(plugin)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _score(rollout: Rollout, example: Example) -> Score:
    assert _reward is not None  # `_begin` has run
    return score(_reward, rollout, example)


def score(reward: RewardFn, rollout: Rollout, example: Example) -> Score:
    """The checked score of a rollout. Raises `UnmaskError` for one that is none; what the reward raises names the example."""
    try:
        result = reward(rollout, example)
    except Exception as error:
        error.add_note(f"while {type(reward).__name__} scored a response to example {example.id}")
        raise
    where = f"example {example.id}: the reward {type(reward).__name__} gave"
    if not (isinstance(result, tuple) and len(result) in (2, 3)):
        raise UnmaskError(f"{where} {result!r}; expected (reward, reason) or (reward, reason, token_rewards)")
    given = Score(*result)
    if not _is_number(given.reward):
        raise UnmaskError(f"{where} the reward {given.reward!r}; expected a finite number")
    if given.token_rewards is None:
        return Score(float(given.reward), str(given.reason))
    length = len(rollout.trace.response_ids)
    if np.shape(given.token_rewards) != (length,):
        raise UnmaskError(f"{where} token rewards of shape {np.shape(given.token_rewards)} for {length} response tokens")
    if not all(map(_is_number, given.token_rewards)):
        raise UnmaskError(f"{where} token rewards that are not all finite numbers")
    return Score(float(given.reward), str(given.reason), [float(value) for value in given.token_rewards])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and abs(float(value)) <= LARGEST_REWARD  # NaN is not


def _died(example: Example) -> UnmaskError:
    return UnmaskError(
        f"example {example.id}: a worker process of the reward died (out of memory, or killed); the last checkpoint is intact"
    )

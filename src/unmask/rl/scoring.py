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

from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.rewards import RewardFn, Score, make_reward
from unmask.types import Example, Rollout

_reward: RewardFn | None = None  # of this worker process


class RewardPool:
    """A reward and the processes that compute it; with `num_workers` 0, this process, when the result is asked for.

    Use as a context manager. Results do not depend on the number of workers. `waited_s`: how long results were waited for
    after decoding had ended.
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
        """Begins to score; the result is called for later. That call raises `UnmaskError` when a worker has died."""
        if self._pool is None:
            return lambda: Score(*self.reward(rollout, example))
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
    return Score(*_reward(rollout, example))


def _died(example: Example) -> UnmaskError:
    return UnmaskError(
        f"example {example.id}: a worker process of the reward died (out of memory, or killed); the last checkpoint is intact"
    )

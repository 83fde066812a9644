"""Scoring responses while others are still being decoded."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.rewards import Reward, Score, make_reward
from unmask.rewards.background import BackgroundLoop
from unmask.types import Example, Rollout

LARGEST_REWARD = 1e9  # what is larger is a mistake, and its square would overflow


class RewardPool:
    """A reward, and a thread in which it scores, many responses at a time.

    Use as a context manager: entering starts what the reward needs and raises `UnmaskError` where that is not there; a pool
    that was not entered starts with the first response, and its reward ends with the process. `waited_s`: how long results
    were waited for after decoding had ended.
    """

    def __init__(self, plugin: Plugin):
        self.reward = make_reward(plugin)
        self.waited_s = 0.0
        self._loop: BackgroundLoop | None = None
        self._running: set[Future[Score]] = set()

    def __enter__(self) -> RewardPool:
        self._start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._loop is None:
            return
        loop, self._loop = self._loop, None
        for future in list(self._running):
            future.cancel()
        try:
            loop.run(self.reward.close())
        finally:
            loop.close()

    def _start(self) -> BackgroundLoop:
        if self._loop is None:
            loop = BackgroundLoop()
            try:
                loop.run(self.reward.start())
            except BaseException:
                loop.run(self.reward.close())
                loop.close()
                raise
            self._loop = loop
        return self._loop

    @property
    def needs_pieces(self) -> bool:
        return self.reward.needs_pieces

    def provenance(self) -> dict[str, str]:
        """What scores depend on besides the reward's options, by name."""
        self._start()
        return self.reward.provenance()

    def check(self, examples: Sequence[Example]) -> None:
        """Raises `UnmaskError` for an example that the reward cannot score."""
        for example in examples:
            self.reward.check(example)

    def submit(self, rollout: Rollout, example: Example) -> Future[Score]:
        """Begins to score. The result raises `UnmaskError` for a score that is none, and what the reward raises."""
        future = self._start().submit(score(self.reward, rollout, example))
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def finish_group(self, rollouts: Sequence[Rollout], scores: Sequence[Score], example: Example) -> list[Score]:
        """The final, checked scores of all responses to an example."""
        finished = self.reward.finish_group(rollouts, scores)
        return [checked(self.reward, given, rollout, example) for given, rollout in zip(finished, rollouts, strict=True)]


async def score(reward: Reward, rollout: Rollout, example: Example) -> Score:
    """The checked score of a rollout. Raises `UnmaskError` for one that is none; what the reward raises names the example."""
    try:
        given = await reward(rollout, example)
    except Exception as error:
        error.add_note(f"while {type(reward).__name__} scored a response to example {example.id}")
        raise
    return checked(reward, given, rollout, example)


def checked(reward: Reward, result: object, rollout: Rollout, example: Example) -> Score:
    """The score with plain numbers. Raises `UnmaskError` where it is none, or has a number that is not finite."""
    where = f"example {example.id}: the reward {type(reward).__name__} gave"
    if not (isinstance(result, tuple) and 1 <= len(result) <= len(Score._fields)):
        raise UnmaskError(f"{where} {result!r}; expected a Score: (reward, reason, token_rewards, parts)")
    given = Score(*result)
    if not _is_number(given.reward):
        raise UnmaskError(f"{where} the reward {given.reward!r}; expected a finite number")
    if not isinstance(given.parts, dict) or not all(map(_is_number, given.parts.values())):
        raise UnmaskError(f"{where} the parts {given.parts!r}; expected finite numbers by name")
    parts = {str(name): float(part) for name, part in given.parts.items()}
    if given.token_rewards is None:
        return Score(float(given.reward), str(given.reason), None, parts)
    length = len(rollout.trace.response_ids)
    if np.shape(given.token_rewards) != (length,):
        raise UnmaskError(f"{where} token rewards of shape {np.shape(given.token_rewards)} for {length} response tokens")
    if not all(map(_is_number, given.token_rewards)):
        raise UnmaskError(f"{where} token rewards that are not all finite numbers")
    return Score(float(given.reward), str(given.reason), [float(value) for value in given.token_rewards], parts)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and abs(float(value)) <= LARGEST_REWARD  # NaN is not

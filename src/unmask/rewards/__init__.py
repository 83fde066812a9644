"""Rewards: a registry of callables from a rollout and its example to a score."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from unmask.config import Plugin, make_plugin
from unmask.rewards.boxed import Boxed
from unmask.rewards.chained_steps import ChainedSteps
from unmask.types import Example, Rollout


class Score(NamedTuple):
    """reward: 1 is a right answer, 0 a wrong one. reason: in a few words. token_rewards: process rewards, one per response
    token, if the reward has them."""

    reward: float
    reason: str
    token_rewards: list[float] | None = None


class RewardFn(Protocol):
    """A class `(options: Options)` with a pydantic model `Options` inside. `needs_pieces`, where it is there and true, asks
    for the response's tokens as text in `rollout.pieces`."""

    def __call__(self, rollout: Rollout, example: Example) -> Score | tuple[float, str] | tuple[float, str, list[float]]:
        """The rollout's text is already set."""
        ...


REWARDS: dict[str, Any] = {"boxed": Boxed, "chained_steps": ChainedSteps}


def make_reward(plugin: Plugin) -> RewardFn:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(REWARDS, plugin, "reward")


__all__ = ["REWARDS", "RewardFn", "Score", "make_reward"]

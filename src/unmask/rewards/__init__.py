"""Rewards: a registry of callables from a rollout and its example to a number and the reason for it."""

from __future__ import annotations

from typing import Any, Protocol

from pydantic import BaseModel

from unmask.config import Plugin, check
from unmask.errors import UnmaskError
from unmask.rewards.boxed import Boxed
from unmask.types import Example, Rollout


class RewardFn(Protocol):
    def __call__(self, rollout: Rollout, example: Example) -> tuple[float, str]:
        """(reward, reason in a few words). 1 is a right answer, 0 a wrong one; the rollout's text is already set."""
        ...


REWARDS: dict[str, Any] = {"boxed": Boxed}


def reward_options(plugin: Plugin) -> BaseModel:
    """The checked options of a reward. Raises `UnmaskError`."""
    if plugin.name not in REWARDS:
        raise UnmaskError(f"unknown reward {plugin.name!r}; known: {', '.join(REWARDS)}")
    return check(REWARDS[plugin.name].Options, plugin.options, "reward.options")


def make_reward(plugin: Plugin) -> RewardFn:
    return REWARDS[plugin.name](reward_options(plugin))

"""Rewards: a registry of callables from a rollout and its example to a number and the reason for it."""

from __future__ import annotations

from typing import Any, Protocol

from unmask.config import Plugin, make_plugin
from unmask.rewards.boxed import Boxed
from unmask.types import Example, Rollout


class RewardFn(Protocol):
    def __call__(self, rollout: Rollout, example: Example) -> tuple[float, str]:
        """(reward, reason in a few words). 1 is a right answer, 0 a wrong one; the rollout's text is already set."""
        ...


REWARDS: dict[str, Any] = {"boxed": Boxed}


def make_reward(plugin: Plugin) -> RewardFn:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(REWARDS, plugin, "reward")

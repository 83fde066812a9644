"""Rewards: a registry of classes that score a response to an example."""

from __future__ import annotations

from unmask.config import OWN_FUNCTION, Plugin, make_plugin
from unmask.rewards.chained_steps import ChainedSteps
from unmask.rewards.code import Code
from unmask.rewards.exact import Exact
from unmask.rewards.format import Format
from unmask.rewards.interface import Reward, Score
from unmask.rewards.judge import Judge
from unmask.rewards.length import Length
from unmask.rewards.math import Math
from unmask.rewards.own_function import OwnFunction
from unmask.rewards.weighted_sum import WeightedSum

REWARDS: dict[str, type[Reward]] = {
    "math": Math,
    "code": Code,
    "exact": Exact,
    "format": Format,
    "length": Length,
    "judge": Judge,
    "chained_steps": ChainedSteps,
    "weighted_sum": WeightedSum,
    OWN_FUNCTION: OwnFunction,
}


def make_reward(plugin: Plugin) -> Reward:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(REWARDS, plugin, "reward")


__all__ = ["REWARDS", "Reward", "Score", "make_reward"]

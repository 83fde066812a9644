"""Which rollouts a step trains on: prompts in seeded epochs, groups that carry a signal, others in place of the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from unmask.config.training import RlTrainConfig
from unmask.objectives.advantages import NO_VARIANCE
from unmask.types import Example, RolloutGroup

Decode = Callable[[Sequence[Example], int], list[RolloutGroup]]  # (examples, number of the round) -> rewarded groups


@dataclass(slots=True)
class Collected:
    """All groups that were rolled out, and those of them that are trained on (at most `prompts_per_step`)."""

    groups: list[RolloutGroup]
    kept: list[RolloutGroup]
    num_rounds: int


def collect(
    take: Callable[[int], list[Example]], decode: Decode, config: RlTrainConfig, *, keeps_all: bool = False
) -> Collected:
    """Rolls out `prompts_per_step` groups; those that are left out are replaced, in at most `max_sampling_rounds` rounds.

    take: the next n examples of the seeded order. keeps_all: groups of equal rewards are trained on, too (a baseline that is
    not the group's gives them a signal).
    """
    collected = Collected([], [], 0)
    while collected.num_rounds < config.max_sampling_rounds and len(collected.kept) < config.prompts_per_step:
        groups = decode(take(config.prompts_per_step - len(collected.kept)), collected.num_rounds)
        collected.groups += groups
        collected.kept += [group for group in groups if is_trained_on(group, config, keeps_all)]
        collected.num_rounds += 1
    return collected


def is_trained_on(group: RolloutGroup, config: RlTrainConfig, keeps_all: bool = False) -> bool:
    """Whether the group's accuracy is in the window, and its rewards (or those of its tokens) are not all the same."""
    if not config.min_accuracy <= accuracy(group) <= config.max_accuracy:
        return False
    return keeps_all or has_signal(group)


def has_signal(group: RolloutGroup) -> bool:
    """Whether its responses differ in their rewards, or in those of their tokens."""
    if np.std([rollout.reward or 0.0 for rollout in group.rollouts]) > NO_VARIANCE:
        return True
    return len({tuple(np.trim_zeros(rollout.token_rewards or (), "b")) for rollout in group.rollouts}) > 1


def accuracy(group: RolloutGroup) -> float:
    """Share of responses that are right, which is to say have reward 1 (or more)."""
    return float(np.mean([(rollout.reward or 0.0) >= 1 for rollout in group.rollouts]))

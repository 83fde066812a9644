"""A weighted sum of other rewards; each is a sub-score under its name."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from unmask.config import Plugin, plugin_options
from unmask.errors import UnmaskError
from unmask.rewards.interface import Reward, RewardOptions, Score
from unmask.types import Example, Rollout


class Term(RewardOptions):
    """One of the summed rewards."""

    name: str = Field(description="one of the rewards; each at most once")
    weight: float = Field(description="its factor; a negative one makes a penalty")
    options: dict[str, Any] = Field(default_factory=dict, description="of that reward")


class WeightedSum(Reward):
    """The sum of weight * reward over its terms; so for token rewards. `parts` has each term's own reward, unweighted."""

    class Options(RewardOptions):
        terms: tuple[Term, ...] = Field(strict=False, min_length=1, description="what is summed")

        @field_validator("terms")
        @classmethod
        def _check_terms(cls, terms: tuple[Term, ...]) -> tuple[Term, ...]:
            """With the defaults of each term's options filled in. Raises `UnmaskError` with the key."""
            from unmask.rewards import REWARDS  # which this reward is in

            if twice := [name for name, count in Counter(term.name for term in terms).items() if count > 1]:
                raise ValueError(f"{twice[0]} is there twice; its sub-scores would have one name")
            filled = []
            for i, term in enumerate(terms):
                options = plugin_options(REWARDS, Plugin(name=term.name, options=term.options), f"reward.options.terms.{i}")
                filled.append(term.model_copy(update={"options": options.model_dump(mode="json", exclude_none=True)}))
            return tuple(filled)

    def __init__(self, options: WeightedSum.Options):
        from unmask.rewards import make_reward  # as above

        super().__init__(options)
        self.terms = [(term, make_reward(Plugin(name=term.name, options=term.options))) for term in options.terms]
        self.needs_pieces = any(reward.needs_pieces for _, reward in self.terms)
        self._scores: dict[int, list[Score]] = {}  # of the terms, by the id of a rollout whose group is not finished

    def check(self, example: Example) -> None:
        for _, reward in self.terms:
            reward.check(example)

    async def start(self) -> None:
        for _, reward in self.terms:
            await reward.start()

    async def close(self) -> None:
        for _, reward in self.terms:
            await reward.close()

    def provenance(self) -> dict[str, str]:
        return {f"{term.name}.{name}": value for term, reward in self.terms for name, value in reward.provenance().items()}

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        scores = await asyncio.gather(*(reward(rollout, example) for _, reward in self.terms))
        self._scores[id(rollout)] = scores
        return self._sum(scores)

    def finish_group(self, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[Score]:
        by_rollout = [self._scores.pop(id(rollout)) for rollout in rollouts]
        by_term = [
            reward.finish_group(rollouts, [scores[i] for scores in by_rollout]) for i, (_, reward) in enumerate(self.terms)
        ]
        return [self._sum(row) for row in zip(*by_term, strict=True)]

    def _sum(self, scores: Sequence[Score]) -> Score:
        reasons = []
        parts: dict[str, float] = {}
        token_rewards: np.ndarray | None = None
        for (term, _), score in zip(self.terms, scores, strict=True):
            reasons.append(f"{term.name} {score.reward:g}" + (f" ({score.reason})" if score.reason else ""))
            parts |= {term.name: score.reward, **{f"{term.name}.{name}": part for name, part in score.parts.items()}}
            if score.token_rewards is not None:
                weighted = term.weight * np.asarray(score.token_rewards, dtype=np.float64)
                if token_rewards is not None and token_rewards.shape != weighted.shape:
                    raise UnmaskError(f"the reward {term.name} gave {len(weighted)} token rewards, others {len(token_rewards)}")
                token_rewards = weighted if token_rewards is None else token_rewards + weighted
        # Rounded once: 0.7 + 0.2 + 0.1 is 1, with which a response is right.
        total = math.fsum(term.weight * score.reward for (term, _), score in zip(self.terms, scores, strict=True))
        return Score(total, "; ".join(reasons), None if token_rewards is None else token_rewards.tolist(), parts)

"""A share that falls (or rises) linearly between two numbers of response tokens."""

from __future__ import annotations

from pydantic import Field, model_validator

from unmask.rewards.interface import Reward, RewardOptions, Score
from unmask.types import Example, Rollout


class Length(Reward):
    """(zero_at - n) / (zero_at - one_at) for n response tokens, cut to [0, 1].

    With one_at < zero_at short responses get more, with one_at > zero_at long ones do. In a weighted sum, a negative weight
    makes a penalty of it.
    """

    class Options(RewardOptions):
        one_at: int = Field(ge=0, description="response tokens with reward 1")
        zero_at: int = Field(ge=0, description="response tokens with reward 0; linear in between, flat beyond")

        @model_validator(mode="after")
        def _differ(self) -> Length.Options:
            if self.one_at == self.zero_at:
                raise ValueError(f"one_at and zero_at should differ, both are {self.one_at}")
            return self

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        zero_at, one_at = self.options.zero_at, self.options.one_at
        num_tokens = rollout.trace.num_response_tokens
        share = (zero_at - num_tokens) / (zero_at - one_at)
        return Score(min(1.0, max(0.0, share)), f"{num_tokens} tokens")

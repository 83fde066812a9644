"""What a reward is: a class that scores one response to one example, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from pydantic import BaseModel, ConfigDict

from unmask.errors import UnmaskError
from unmask.types import Example, Rollout


class Score(NamedTuple):
    """What a response is worth.

    reward: 1 is a right answer, 0 a wrong one. reason: in a few words. token_rewards: process rewards, one per response token,
    if the reward has them. parts: sub-scores by name, for readers; they are not added to the reward.
    """

    reward: float
    reason: str = ""
    token_rewards: list[float] | None = None
    parts: Mapping[str, float] = {}


class RewardOptions(BaseModel):
    """Base of the options of a reward: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Reward:
    """Base of all rewards. A subclass has a nested `Options` (every field with a description) and scores in `__call__`.

    Calls of one reward overlap: while one waits (for a worker, a process, a server), others go on. What computes for long
    belongs into a worker process (`unmask.rewards.workers`): it would hold up everything else here.
    """

    Options: ClassVar[type[BaseModel]] = RewardOptions
    needs_pieces: bool = False  # each response token's share of the text, in `rollout.pieces`

    def __init__(self, options: Any):
        self.options = options

    def check(self, example: Example) -> None:
        """Raises `UnmaskError` for an example that cannot be scored. Called before anything is decoded."""

    async def start(self) -> None:
        """Imports and starts what is needed for scoring; called once, before the first score. Raises `UnmaskError`."""

    async def close(self) -> None:
        """Ends what `start` has begun, also where that failed half-way."""

    def provenance(self) -> dict[str, str]:
        """What its scores depend on besides its options, by name, for the records of an evaluation; asked for after `start`."""
        return {}

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        """The rollout's text is set. A response that cannot be judged scores 0 and says why; what is raised ends the run."""
        raise NotImplementedError

    def finish_group(self, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[Score]:
        """The final scores of all responses to one example, once each has its own: for what is normalised over the group."""
        return list(scores)


def require_answer(example: Example) -> None:
    """Raises `UnmaskError` for an example without an answer."""
    if not (example.answer or "").strip():
        raise UnmaskError(f"example {example.id}: has no answer; the reward compares with one")


def turn_text(rollout: Rollout, example: Example) -> str:
    """The whole turn of the assistant: the response, after the prefix that the prompt has begun it with (`<think>`, say)."""
    return example.response_prefix + rollout.text


def is_cut(rollout: Rollout) -> bool:
    """Whether the response ended at the length limit."""
    return rollout.trace.finish_reason == "length"

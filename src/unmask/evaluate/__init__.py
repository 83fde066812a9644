"""Evaluation: accuracy and speed of a model on examples, with the traces that show how it got there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unmask.data.chat import ChatTokenizer
from unmask.data.sources import Source
from unmask.dist import ALONE, Ranks
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.evaluate.results import METRICS, measure
from unmask.rl.rollout import make_rollouts
from unmask.rl.scoring import RewardPool
from unmask.types import Example, RolloutGroup, SamplingParams, Trace


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The rollouts, example by example, and what `measure` says of them."""

    groups: list[RolloutGroup]
    measured: dict[str, Any]

    def metrics(self) -> dict[str, float]:
        return {name: self.measured[name] for name in METRICS}


def evaluate(
    engine: Engine, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams, rewards: RewardPool, *,
    num_responses: int = 1, finished: Mapping[int, Trace] | None = None,
    on_finished: Callable[[int, Trace], None] | None = None, ranks: Ranks = ALONE,
) -> Evaluation:  # fmt: skip
    """Decodes `num_responses` responses to each example and scores them.

    finished, on_finished, ranks: of `make_rollouts`, to continue what was interrupted, and to share the work.
    """
    groups = make_rollouts(
        engine, tokenizer, examples, params, rewards, group_size=num_responses, seed_keys=("eval",), finished=finished,
        on_finished=on_finished, ranks=ranks,
    )  # fmt: skip
    return Evaluation(groups, measure(groups))


def take_examples(source: Source | Sequence[Example], num: int, first: int = 0) -> list[Example]:
    """`num` examples from index `first` on (fewer if the source ends). Raises `UnmaskError` where there are none."""
    examples = [source[i] for i in range(first, min(first + num, len(source)))]
    if not examples:
        raise UnmaskError(f"the source has {len(source)} examples, none from index {first} on")
    return examples


__all__ = ["METRICS", "Evaluation", "evaluate", "take_examples"]

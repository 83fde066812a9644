"""Evaluation: accuracy and speed of a model on examples, with the traces that show how it got there."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unmask.data.chat import ChatTokenizer
from unmask.data.sources import Source
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.files import new_file
from unmask.rl.rollout import make_rollouts
from unmask.rl.scoring import RewardPool
from unmask.types import Example, RolloutGroup, SamplingParams, TraceRecord

METRICS = ("accuracy", "tokens_per_forward", "response_length", "cut_share")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Means over examples (one response each). `standard_error` is that of the accuracy."""

    accuracy: float
    standard_error: float
    tokens_per_forward: float
    response_length: float
    cut_share: float
    num_examples: int
    groups: list[RolloutGroup]

    def metrics(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in METRICS}


def evaluate(
    engine: Engine, tokenizer: ChatTokenizer, examples: Sequence[Example], params: SamplingParams, rewards: RewardPool
) -> Evaluation:
    """Decodes one response per example and rewards it. Accuracy is the mean reward; tokens per forward is all response
    tokens over all forward passes."""
    groups = make_rollouts(engine, tokenizer, examples, params, rewards, seed_keys=("eval",))
    rollouts = [group.rollouts[0] for group in groups]
    values, n = [float(r.reward or 0.0) for r in rollouts], len(rollouts)
    accuracy = sum(values) / n
    variance = sum((value - accuracy) ** 2 for value in values) / max(1, n - 1)
    num_tokens = sum(r.trace.num_response_tokens for r in rollouts)
    return Evaluation(
        accuracy=accuracy,
        standard_error=math.sqrt(variance / n),
        tokens_per_forward=num_tokens / sum(r.trace.num_forwards for r in rollouts),
        response_length=num_tokens / n,
        cut_share=sum(r.trace.finish_reason == "length" for r in rollouts) / n,
        num_examples=n,
        groups=groups,
    )


def take_examples(source: Source | Sequence[Example], num: int, first: int = 0) -> list[Example]:
    """`num` examples from index `first` on (fewer if the source ends). Raises `UnmaskError` for none."""
    examples = [source[i] for i in range(first, min(first + num, len(source)))]
    if not examples:
        raise UnmaskError(f"the source has {len(source)} examples, none from index {first} on")
    return examples


def trace_record(group: RolloutGroup, tokenizer: ChatTokenizer, member: int = 0) -> TraceRecord:
    """A rollout as a line of traces.jsonl."""
    rollout, example = group.rollouts[member], group.example
    return TraceRecord(
        id=example.id,
        trace=rollout.trace,
        prompt_text=example.messages[-1].content,
        response_text=rollout.text,
        prompt_pieces=tokenizer.pieces(rollout.trace.prompt_ids),
        canvas_pieces=tokenizer.pieces(rollout.trace.canvas_ids),
        answer=example.answer,
        reward=rollout.reward,
    )


def write_records(path: Path, records: Sequence[TraceRecord]) -> None:
    """One JSON object per line, written whole or not at all. Raises `UnmaskError`."""
    with new_file(path) as temporary, open(temporary, "w", encoding="utf-8") as lines:
        for record in records:
            lines.write(json.dumps(record.to_dict(), ensure_ascii=False) + "\n")

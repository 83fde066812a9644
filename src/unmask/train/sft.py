"""Supervised fine-tuning, read from top to bottom."""

from __future__ import annotations

import time

from torch import Tensor

from unmask.config import SftRecipe
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import EpochOrder, Source
from unmask.errors import UnmaskError
from unmask.objectives import SftObjective
from unmask.objectives.rows import RowBatch, score_targets
from unmask.train.run import Outcome, Run
from unmask.types import Demonstration


def train_sft(
    recipe: SftRecipe, run: Run, source: Source, tokenizer: ChatTokenizer, objective: SftObjective
) -> Outcome:  # fmt: skip
    """Trains until the measured target or `train.max_steps`. Everything a step does follows from its number."""
    trainer, batch_size = run.trainer, recipe.train.batch_size
    order = EpochOrder(len(source), recipe.run.seed)

    def loss_fn(batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return objective.loss(score_targets(trainer.model, batch, trainer.backend, excludes_mask=False), batch)

    with run:
        for step in run.steps():
            start = time.monotonic()
            # 1. The step's demonstrations, from its place in the seeded epochs.
            places = range(step * batch_size, (step + 1) * batch_size)
            items = [demonstration(source, tokenizer, *order[place], place) for place in places]
            # 2. Rows: clean and noisy copies.
            rows = objective.rows(items)
            # 3. One optimizer step.
            stats = trainer.update(rows, loss_fn) if rows else {}
            # 4. Metrics, evaluation, checkpoint, end.
            num_tokens = sum(len(row.input_ids) for row in rows)
            run.finish_step({**stats, "num_tokens": num_tokens}, {"step_s": time.monotonic() - start})
    return run.outcome


def demonstration(source: Source, tokenizer: ChatTokenizer, index: int, epoch: int, place: int = 0) -> Demonstration:
    example = source[index]
    if example.trace is not None:
        return Demonstration(index, epoch, example.trace.prompt_ids, example.trace.response_ids, example.trace, place)
    if example.response is None:
        raise UnmaskError(f"example {example.id}: has no response; supervised fine-tuning needs demonstrations")
    return Demonstration(index, epoch, tokenizer.prompt_ids(example), tokenizer.response_ids(example), place=place)

"""Supervised fine-tuning, read from top to bottom."""

from __future__ import annotations

import time

from torch import Tensor

from unmask.config import SftRecipe
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import Source
from unmask.models import Decoder
from unmask.objectives import SftObjective
from unmask.objectives.rows import RowBatch, score_targets
from unmask.train.batches import Batches
from unmask.train.run import Outcome, Run
from unmask.train.trainer import LossFn, Trainer


def train_sft(
    recipe: SftRecipe, run: Run, source: Source, tokenizer: ChatTokenizer, objective: SftObjective
) -> Outcome:  # fmt: skip
    """Trains until the measured target or `train.max_steps`. Everything a step does follows from its number."""
    trainer = run.trainer
    loss_fn = sft_loss(trainer, objective)
    batches = Batches(recipe.train, source, tokenizer, recipe.run.seed, run.progress.say)
    with run:
        for step in run.steps():
            start = time.monotonic()
            # 1. The step's demonstrations, from its place in the seeded epochs.
            items, num_too_long = batches[step]
            # 2. Rows: clean and noisy copies.
            rows = objective.rows(items) if items else []
            # 3. One optimizer step.
            stats = trainer.update(rows, loss_fn) if rows else {}
            # 4. Metrics, evaluation, checkpoint, end.
            counts = {"num_tokens": sum(len(row.input_ids) for row in rows)}
            if recipe.train.max_length is not None:
                counts["num_too_long"] = num_too_long
            run.finish_step({**stats, **counts}, {"step_s": time.monotonic() - start})
    return run.outcome


def sft_loss(trainer: Trainer[Decoder], objective: SftObjective) -> LossFn:
    """The loss of a pack of the objective's rows."""

    def loss_fn(batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return objective.loss(score_targets(trainer.model, batch, trainer.backend, excludes_mask=False), batch)

    return loss_fn

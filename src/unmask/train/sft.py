"""Supervised fine-tuning, read from top to bottom."""

from __future__ import annotations

from collections.abc import Sequence

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
    recipe: SftRecipe, run: Run, source: Source, tokenizer: ChatTokenizer, stages: Sequence[tuple[int, SftObjective]]
) -> Outcome:
    """Trains until the measured target or `train.max_steps`. Everything a step does follows from its number.

    stages: first step and objective of each.
    """
    trainer = run.trainer
    if recipe.block_schedule:  # an evaluation before the first step has its blocks, too
        trainer.model.set_block_size(recipe.block_schedule[0].block_size)
    batches = Batches(recipe.train, source, tokenizer, recipe.run.seed, run.say)
    with run:
        for step in run.steps():
            watch = run.stopwatch()
            # 1. The step's demonstrations, from its place in the seeded epochs.
            watch.begin("data_s")
            items, num_too_long = batches[step]
            # 2. Rows: clean and noisy copies, in blocks of the stage's size.
            watch.begin("rows_s")
            index = max(i for i, (from_step, _) in enumerate(stages) if from_step <= step)
            if recipe.block_schedule:
                trainer.model.set_block_size(recipe.block_schedule[index].block_size)
            objective = stages[index][1]
            rows = objective.rows(items) if items else []
            # 3. One optimizer step.
            watch.begin("update_s")
            stats = trainer.update(rows, sft_loss(trainer, objective)) if rows else {}
            # 4. Metrics, evaluation, checkpoint, end.
            counts = {"num_tokens": 0, "num_targets": sum(len(row.target_ids) for row in rows)}
            if recipe.train.max_length is not None:
                counts["num_too_long"] = num_too_long
            metrics = {**counts, **stats}
            run.finish_step(metrics, watch.timings(metrics["num_targets"], metrics["num_tokens"]))
    return run.outcome


def sft_loss(trainer: Trainer[Decoder], objective: SftObjective) -> LossFn:
    """The loss of a pack of the objective's rows."""

    def loss_fn(batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return objective.loss(score_targets(trainer.model, batch, trainer.backend, excludes_mask=False), batch)

    return loss_fn

"""What is measured while a run goes on: decoded answers, and the loss of held-out demonstrations."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from unmask.config import Plugin, RlRecipe, SftRecipe
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import open_source
from unmask.engine import Engine
from unmask.evaluate import METRICS, evaluate, take_examples
from unmask.models import Decoder
from unmask.objectives import SFT_OBJECTIVES, make_sft_objective
from unmask.objectives.rows import TrainRow
from unmask.rl.scoring import RewardPool
from unmask.train.demonstrations import demonstration
from unmask.train.sft import sft_loss
from unmask.train.trainer import LossFn, Trainer

Measure = Callable[[], dict[str, float]]


def measured_metrics(recipe: SftRecipe | RlRecipe) -> list[str]:
    """The names of what an evaluation of this run gives."""
    names = list(METRICS) if recipe.eval.num_examples else []
    if isinstance(recipe, SftRecipe) and recipe.eval.num_loss_examples:
        names += ["loss", *(f"loss_at_{rate:g}" for rate in rates_measured(recipe))]
    return names


def joined(measures: Sequence[Measure]) -> Measure:
    return lambda: {name: value for measure in measures for name, value in measure().items()}


def make_evaluator(
    recipe: SftRecipe | RlRecipe, trainer: Trainer, engine: Engine, tokenizer: ChatTokenizer, rewards: RewardPool
) -> Measure:
    """Measures the trainer's model on the recipe's held-out examples: always the same ones, with the same seeds."""
    config = recipe.eval
    source = config.source or recipe.source
    examples = []
    if config.every_steps:
        held_out = open_source(source, "held_out", recipe.run.seed)
        examples = take_examples(held_out, config.num_examples, config.first_example)
        rewards.check(examples)
        engine.check(tokenizer.prompt_ids(examples[0]), config.sampling, name="eval.sampling")

    def measure() -> dict[str, float]:
        engine.update_weights(policy_version=trainer.optimizer_step)
        with trainer.autocast():
            result = evaluate(engine, tokenizer, examples, config.sampling, rewards)
        return result.metrics()

    return measure


def rates_measured(recipe: SftRecipe) -> tuple[float, ...]:
    """The masking rates of the held-out loss; none where the objective draws no masks."""
    draws_masks = "min_rate" in SFT_OBJECTIVES[recipe.objective.name].Options.model_fields
    return recipe.eval.loss_rates if draws_masks else ()


def make_loss_meter(recipe: SftRecipe, trainer: Trainer[Decoder], tokenizer: ChatTokenizer) -> Measure:
    """Measures the mean loss in nats a token of held-out demonstrations, always with the same masks: at each of the rates
    ("loss_at_0.5"), and over them ("loss"). Where the model's blocks grow, with the blocks it has. Raises `UnmaskError`.
    """
    held_out = open_source(recipe.eval.source or recipe.source, "held_out", recipe.run.seed)
    num = min(recipe.eval.num_loss_examples, len(held_out))
    items = [demonstration(held_out, tokenizer, i, 0, i) for i in range(num)]
    options = recipe.objective.options | {"loss_normalization": "token"}
    rated = {f"loss_at_{rate:g}": {"min_rate": rate, "max_rate": rate} for rate in rates_measured(recipe)}
    if rated:
        options["has_complements"] = False  # a complement has another rate

    @functools.cache
    def losses(block_size: int) -> dict[str, tuple[list[TrainRow], LossFn]]:
        """Rows and loss by name, for the model's blocks as they are now."""
        found = {}
        for name, rates in (rated or {"loss": {}}).items():
            plugin = Plugin(name=recipe.objective.name, options=options | rates)
            objective = make_sft_objective(plugin, trainer.model, recipe.run.seed)
            found[name] = (objective.rows(items), sft_loss(trainer, objective))
        return found

    def measure() -> dict[str, float]:
        found = {name: trainer.measure(*of) for name, of in losses(trainer.model.spec.block_size).items()}
        return {"loss": sum(found.values()) / len(found)} | found

    losses(trainer.model.spec.block_size)
    return measure

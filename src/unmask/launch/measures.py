"""What is measured while a run goes on: decoded answers, and the loss of held-out demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from unmask.config import Plugin, RlRecipe, SftRecipe
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import open_source
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.evaluate import METRICS, evaluate, take_examples
from unmask.models import Decoder
from unmask.objectives import SFT_OBJECTIVES, make_sft_objective
from unmask.objectives.rows import TrainRow
from unmask.rl.scoring import RewardPool
from unmask.train.demonstrations import Lengths, demonstration
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
        trainer.publish(engine.model)
        engine.update_weights(policy_version=trainer.optimizer_step)
        with trainer.autocast():
            result = evaluate(engine, tokenizer, examples, config.sampling, rewards, ranks=trainer.ranks)
        return result.metrics()

    return measure


def rates_measured(recipe: SftRecipe) -> tuple[float, ...]:
    """The masking rates of the held-out loss; none where the objective draws no masks."""
    draws_masks = "min_rate" in SFT_OBJECTIVES[recipe.objective.name].Options.model_fields
    return recipe.eval.loss_rates if draws_masks else ()


def make_loss_meter(recipe: SftRecipe, trainer: Trainer[Decoder], tokenizer: ChatTokenizer) -> Measure:
    """Measures the mean loss in nats a token of held-out demonstrations, always with the same masks: at each of the rates
    ("loss_at_0.5"), and over them ("loss"). Raises `UnmaskError`.
    """
    held_out = open_source(recipe.eval.source or recipe.source, "held_out", recipe.run.seed)
    num = min(recipe.eval.num_loss_examples, len(held_out))
    items = [demonstration(held_out, tokenizer, i, 0, i) for i in range(num)]
    items, _ = Lengths(recipe.train, held_out, say=lambda text: None).fit(items)
    if not items:
        raise UnmaskError(f"all {num} held-out examples are longer than train.max_length {recipe.train.max_length}")
    options = recipe.objective.options | {"loss_normalization": "token"}
    rated = {
        f"loss_at_{rate:g}": {"min_rate": rate, "max_rate": rate, "has_complements": False}  # complements have another rate
        for rate in rates_measured(recipe)
    }

    @lru_cache(maxsize=1)
    def losses(block_size: int | None) -> dict[str, tuple[list[TrainRow], LossFn]]:
        """Rows in the blocks that the model has now, and their loss."""
        made = {}
        for name, rates in (rated or {"loss": {}}).items():
            plugin = Plugin(name=recipe.objective.name, options=options | rates)
            objective = make_sft_objective(plugin, trainer.model, recipe.run.seed)
            if not (rows := objective.rows(items)):
                raise UnmaskError(
                    f"eval.num_loss_examples: nothing of {len(items)} examples is masked for {name}; measure more"
                )
            made[name] = (rows, sft_loss(trainer, objective))
        return made

    losses(trainer.model.spec.block_size)  # mistakes are found before the run

    def measure() -> dict[str, float]:
        found = {name: trainer.measure(*each) for name, each in losses(trainer.model.spec.block_size).items()}
        return {"loss": sum(found.values()) / len(found)} | found

    return measure

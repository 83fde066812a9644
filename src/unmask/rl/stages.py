"""Block growth: with which blocks is rolled out and trained, from which RL step on (paper, section 5)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from unmask.config import Plugin, RlRecipe
from unmask.errors import UnmaskError
from unmask.models import Decoder, ModelSpec
from unmask.objectives import RlObjective, make_rl_objective
from unmask.objectives.rows import TrainRow
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid
from unmask.types import Rollout, SamplingParams


@dataclass(frozen=True, slots=True)
class Stage:
    """From `from_step` on: the parameters of rollouts, the objective, and how traces are viewed."""

    from_step: int
    params: SamplingParams
    objective: RlObjective
    train_block_size: int | None  # None = that of the rollouts
    trace_shrink: int

    def views(self, rollout: Rollout, spec: ModelSpec) -> list[TrainRow]:
        """The rows of a response's trace, on the grid it is trained on."""
        grid = Grid.of(spec, self.train_block_size or rollout.trace.block_size)
        return trace_rows(rollout.trace, grid, spec.mask_token_id, trace_shrink=self.trace_shrink)


def make_stages(recipe: RlRecipe, model: Decoder) -> list[Stage]:
    """The stages of the recipe's block_schedule; one, if it has none. Raises `UnmaskError`."""
    options = recipe.objective.options
    shrink = options.get("trace_shrink", 1)
    if options.get("block_size") and model.spec.attention != "block_causal":
        raise UnmaskError(
            f"objective.options.block_size is for block models; {model.spec.family} has {model.spec.attention} attention"
        )
    if not recipe.block_schedule:
        objective = make_rl_objective(recipe.objective, model)
        return [Stage(0, recipe.rollout, objective, options.get("block_size"), shrink)]
    if model.spec.attention != "block_causal":
        raise UnmaskError(f"block_schedule is for block models; {model.spec.family} has {model.spec.attention} attention")
    stages = []
    for block in recipe.block_schedule:
        differs = block.train_block_size != block.rollout_block_size
        own = {**options, "block_size": block.train_block_size} if differs else options
        objective = make_rl_objective(Plugin(name=recipe.objective.name, options=own), model)
        params = recipe.rollout.model_copy(update={"block_size": block.rollout_block_size})
        stages.append(Stage(block.from_step, params, objective, block.train_block_size, shrink))
    return stages


def enter_stage(stages: list[Stage], step: int, model: Decoder) -> Stage:
    """The stage of a step. The model's own block size becomes that of training: checkpoints and evaluation follow."""
    stage = next(s for s in reversed(stages) if s.from_step <= step)
    if stage.train_block_size and stage.train_block_size != model.spec.block_size:
        model.spec = replace(model.spec, block_size=stage.train_block_size)
        model.config["block_size"] = stage.train_block_size
    return stage

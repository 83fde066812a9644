"""Block growth: with which blocks is rolled out and trained, from which RL step on (paper, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unmask.config import Plugin, RlRecipe
from unmask.errors import UnmaskError
from unmask.models import Decoder, ModelSpec
from unmask.models.decoder import Backbone
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
    options, spec = recipe.objective.options, model.spec
    train_block_size = options.get("block_size")
    if train_block_size and recipe.block_schedule:
        raise UnmaskError("objective.options.block_size and block_schedule both say with which blocks is trained; give one")
    if (train_block_size or recipe.block_schedule) and spec.attention != "block_causal":
        key = "block_schedule" if recipe.block_schedule else "objective.options.block_size"
        raise UnmaskError(f"{key} is for block models; {spec.family} has {spec.attention} attention")
    plan: list[tuple[int, int, int | None]]
    plan = [(s.from_step, s.rollout_block_size, s.train_block_size) for s in recipe.block_schedule]
    shared = {key: value for key, value in options.items() if key != "block_size"}
    stages = []
    for from_step, rollout_size, train_size in plan or [(0, recipe.rollout.block_size or spec.block_size, train_block_size)]:
        differs = train_size not in (None, rollout_size)  # else the views are the sampler's
        if train_size is not None and train_size % rollout_size:
            raise UnmaskError(
                f"blocks of {train_size} are trained on rollouts with blocks of {rollout_size}: should be a multiple, since "
                "steps of different blocks would else be out of order"
            )
        own = {**shared, "block_size": train_size} if differs else shared
        objective = make_rl_objective(Plugin(name=recipe.objective.name, options=own), model)
        params = recipe.rollout
        if spec.attention == "block_causal":  # by number: the model's own may change
            params = params.model_copy(update={"block_size": rollout_size})
        if recipe.train.old_logprobs == "rollout" and not objective.has_sampler_views:
            raise UnmaskError(
                "train.old_logprobs = rollout is for views that the sampler saw; those of this objective (its masks, "
                "trace_shrink or block size) are others: use auto"
            )
        if recipe.fleet.max_staleness and not objective.has_sampler_views:
            raise UnmaskError(
                "fleet.max_staleness 1 is for views that the sampler saw, on which old rollouts are corrected by their "
                "log-probabilities; those of this objective (its masks, trace_shrink or block size) are others: use 0"
            )
        stages.append(Stage(from_step, params, objective, train_size, options.get("trace_shrink", 1)))
    return stages


def stage_of(stages: list[Stage], step: int) -> Stage:
    return next(s for s in reversed(stages) if s.from_step <= step)


def enter_stage(stages: list[Stage], step: int, models: Sequence[Backbone]) -> Stage:
    """The stage of a step. The models' own block size becomes that of training: checkpoints and evaluation follow."""
    stage = stage_of(stages, step)
    for model in models:
        if stage.train_block_size and stage.train_block_size != model.spec.block_size:
            model.set_block_size(stage.train_block_size)
    return stage

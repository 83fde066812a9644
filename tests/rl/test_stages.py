"""Block sizes of rollouts and training: what is exact replay, what is refused, what the models' configs become."""

from __future__ import annotations

import pytest

from tests.conftest import SPECIAL
from tests.recipes import RL, write_recipe
from unmask.config import RlRecipe, load_recipe
from unmask.errors import UnmaskError
from unmask.models import ValueModel
from unmask.models.checkpoint import new_model
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid
from unmask.rl.stages import enter_stage, make_stages
from unmask.types import Rollout, Trace


@pytest.fixture
def stages(tmp_path):
    def make(*words: str, preset: str = "sdar/tiny"):
        recipe = load_recipe(RlRecipe, [write_recipe(tmp_path, "rl", RL)], words)
        model = new_model(preset, 0, **SPECIAL)
        return make_stages(recipe, model), model

    return make


@pytest.mark.parametrize(
    ("words", "rollout", "trained", "is_exact"),
    [
        ((), 4, None, True),
        (("rollout.block_size=8",), 8, None, True),
        (("objective.options.block_size=4",), 4, 4, True),  # the same as the rollouts'
        (("objective.options.block_size=8",), 4, 8, False),
        (("objective.options.block_size=8", "rollout.block_size=8"), 8, 8, True),
        (("objective.options.trace_shrink=2",), 4, None, False),
    ],
)
def test_one_stage(stages, words, rollout, trained, is_exact) -> None:
    [stage], model = stages(*words)
    assert stage.params.block_size == rollout
    assert stage.train_block_size == trained
    assert stage.objective.has_sampler_views == is_exact
    value = ValueModel.from_policy(model)
    assert enter_stage([stage], 0, [model, value]) is stage
    assert {m.spec.block_size for m in (model, value)} == {trained or 4}
    assert {m.config["block_size"] for m in (model, value)} == {trained or 4}
    assert stage.params.block_size == rollout  # whatever the model's own has become


def test_a_schedule(stages) -> None:
    schedule = "[{rollout_block_size=4,train_block_size=8},{from_step=3,rollout_block_size=8,train_block_size=8}]"
    both, model = stages(f"block_schedule={schedule}")
    assert [(s.from_step, s.params.block_size, s.objective.has_sampler_views) for s in both] == [(0, 4, False), (3, 8, True)]
    assert [enter_stage(both, step, [model]) for step in (0, 2, 3, 9)] == [both[0], both[0], both[1], both[1]]


def test_views_are_those_that_are_trained(stages) -> None:
    trace = Trace([5], [10, 11, 12, 13, 14, 15, 16], [0, 1, 2, 3, 3, 4, 5], [0.0] * 7, [1.0] * 7, 7, 4, 6, "length")
    for words, grid, shrink in (
        ((), 4, 1),
        (("objective.options.trace_shrink=2",), 4, 2),
        (("objective.options.block_size=8",), 8, 1),
    ):
        [stage], model = stages(*words)
        [row], [wanted] = stage.views(Rollout(trace, ""), model.spec), trace_rows(trace, Grid(grid), 2, trace_shrink=shrink)
        assert row.input_ids.tolist() == wanted.input_ids.tolist()
        assert row.values["view"].tolist() == wanted.values["view"].tolist()


@pytest.mark.parametrize(
    ("words", "preset", "message"),
    [
        (("objective.options.block_size=8",), "llada/tiny", "objective.options.block_size is for block models; llada has"),
        (("block_schedule=[{rollout_block_size=4,train_block_size=8}]",), "dream/tiny", "block_schedule is for block models"),
        (
            ("objective.options.block_size=8", "block_schedule=[{rollout_block_size=4,train_block_size=8}]"),
            "sdar/tiny",
            "both say with which blocks is trained; give one",
        ),
        (
            ("train.old_logprobs=rollout", "objective.options.trace_shrink=2"),
            "sdar/tiny",
            "train.old_logprobs = rollout is for",
        ),
        (("train.old_logprobs=rollout", "objective.name=coupled"), "llada/tiny", "train.old_logprobs = rollout is for"),
    ],
)
def test_contradictions_are_refused(stages, words, preset, message) -> None:
    with pytest.raises(UnmaskError, match=message):
        stages(*words, preset=preset)

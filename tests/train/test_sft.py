"""Whole SFT runs: every objective on every kind of model learns, and ends where an interrupted one does."""

from __future__ import annotations

import pytest

from tests.recipes import SFT, unmask, write_recipe
from unmask.train.run import read_metrics

OBJECTIVES = {
    "random_masking": ["objective.options.has_complements=true", "objective.options.rates=stratified"],
    "semi_ar": ["objective.options.block_size=8", "objective.options.loss_normalization=elbo"],
    "ar": ["objective.options.loss_normalization=sequence"],
}


@pytest.mark.parametrize("family", ["sdar", "sdar_moe", "dream", "llada", "mmada"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_every_family(family, name, tmp_path) -> None:
    words = [f"model.preset={family}/tiny", f"objective.name={name}", *OBJECTIVES[name], "eval.every_steps=0", "run.seed=1"]
    words += ["train.max_steps=8", "train.batch_size=16"]
    recipe = write_recipe(tmp_path, "sft", SFT)
    result = unmask("sft", recipe, *words, f"run.dir={tmp_path / 'whole'}")
    assert result.returncode == 0, result.stderr
    losses = [record["loss"] for record in read_metrics(tmp_path / "whole")]
    assert sum(losses[-3:]) < sum(losses[:3])
    for steps, more in ((3, []), (8, ["--resume"])):
        torn = unmask("sft", recipe, *words, f"train.max_steps={steps}", f"run.dir={tmp_path / 'torn'}", *more)
        assert torn.returncode == 0, torn.stderr
    whole, torn = ((tmp_path / run / "metrics.jsonl").read_bytes() for run in ("whole", "torn"))
    assert whole == torn

"""Training a mixture of experts: through the commands, with the load of the experts among the metrics."""

from __future__ import annotations

import pytest

from tests.recipes import RL, SFT, unmask, write_recipe
from unmask.metrics import read_metrics


@pytest.mark.parametrize(("kind", "text"), [("sft", SFT), ("rl", RL)])
def test_load_is_reported(kind, text, tmp_path) -> None:
    recipe = write_recipe(tmp_path, kind, text)
    words = [f"run.dir={tmp_path / 'run'}", "model.preset=sdar_moe/tiny", "train.max_steps=10", "eval.every_steps=0"]
    result = unmask(kind, recipe, *words)
    assert result.returncode == 0, result.stderr
    steps = [step for step in read_metrics(tmp_path / "run") if "expert_load_max" in step]
    assert steps
    for step in steps:  # eight experts, two active: an even share is 1, the most anyone can get is 4
        assert 0 <= step["expert_load_min"] <= 1 <= step["expert_load_max"] <= 4

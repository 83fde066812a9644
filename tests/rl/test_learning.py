"""Does RL improve what it should? The tiny recipes, end to end: block model, full attention, with and without value model."""

from __future__ import annotations

import pytest

from tests.recipes import start
from unmask.metrics import read_metrics

pytestmark = pytest.mark.slow


def finish(*words) -> None:
    process = start(*words)
    _, err = process.communicate(timeout=1800)
    assert process.returncode == 0, err


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """The checkpoints that RL begins with: they know their task, and sample it sloppily."""
    folder = tmp_path_factory.mktemp("bases")
    finish("quickstart", "--dir", folder / "quickstart", "run.num_threads=1")
    for number, begin in ((1, ()), (2, (f"model.path={folder / 'llada-1'}",))):
        recipe = f"recipes/tiny/llada-{number}-sft.toml"
        finish("sft", recipe, *begin, f"run.dir={folder / f'llada-{number}'}", "run.num_threads=1")
    return {"sdar-rl": folder / "quickstart" / "2-sft-sloppy", "llada-3-rl": folder / "llada-2"}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("value", ["false", "true"])
@pytest.mark.parametrize("recipe", ["sdar-rl", "llada-3-rl"])
def test_accuracy_rises(bases, tmp_path, recipe, value, seed) -> None:
    """Held-out accuracy of sampled decoding by 25 points, to 85 % at least; tokens per forward rise with it."""
    words = [f"model.path={bases[recipe]}", f"run.dir={tmp_path / 'run'}", f"run.seed={seed}", f"value.enabled={value}"]
    finish("rl", f"recipes/tiny/{recipe}.toml", *words, "train.max_steps=40", "eval.at_start=true", "run.num_threads=1")
    records = read_metrics(tmp_path / "run")
    measured = [r for r in records if "eval/accuracy" in r]
    first, last = measured[0], measured[-1]
    print(recipe, value, seed, first["eval/accuracy"], last["eval/accuracy"])
    assert last["eval/accuracy"] >= max(0.85, first["eval/accuracy"] + 0.25)
    assert last["eval/tokens_per_forward"] > first["eval/tokens_per_forward"]
    assert max(abs(r["mismatch_kl"]) for r in records if "mismatch_kl" in r) < 1e-8

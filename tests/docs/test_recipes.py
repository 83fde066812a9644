"""Every recipe in recipes/ resolves: `unmask sft|rl RECIPE --dry-run`, and what it prints is the same recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from unmask.cli.training import train
from unmask.config import RlRecipe, SftRecipe, load_recipe
from unmask.launch import resolve

RECIPES = sorted((ROOT / "recipes").rglob("*.toml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_resolves(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kind = file.stem.rpartition("-")[2]
    model = {"sft": SftRecipe, "rl": RlRecipe}[kind]
    assert train(kind, [str(file)], resume=False, dry_run=True) == 0
    printed = tmp_path / "recipe.toml"
    printed.write_text(capsys.readouterr().out)
    assert load_recipe(model, [printed]) == resolve(load_recipe(model, [file]))


def test_paper_settings_of_the_rl_recipe() -> None:
    """What the recipe calls the paper's are the defaults too; the two must not drift apart."""
    recipe = load_recipe(RlRecipe, [ROOT / "recipes" / "sdar-4b-rl.toml"])
    defaults = load_recipe(RlRecipe, [], ["model.path=x", "source.name=jsonl"])
    for part, key in (
        ("train", "prompts_per_step"), ("train", "group_size"), ("optimizer", "lr"), ("rollout", "confidence_threshold"),
        ("rollout", "remasking_strategy"), ("rollout", "temperature"),
    ):  # fmt: skip
        assert getattr(getattr(recipe, part), key) == getattr(getattr(defaults, part), key), key
    assert recipe.advantage == "group_zscore"


def test_there_is_one_of_each_kind() -> None:
    assert {file.stem.rpartition("-")[2] for file in RECIPES} == {"sft", "rl"}

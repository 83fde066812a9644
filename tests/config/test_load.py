"""Recipes: merging, overrides, strictness, round trips."""

from __future__ import annotations

import pytest

from unmask.config import EvalRecipe, RlRecipe, SftRecipe, load_recipe, to_toml
from unmask.errors import UnmaskError
from unmask.types import SamplingParams

BASE = '[model]\npreset = "sdar/tiny"\n[source]\nname = "chained_arithmetic"\n'


def recipe(tmp_path, *texts: str, overrides=(), kind=SftRecipe):
    files = []
    for i, text in enumerate(texts):
        files.append(tmp_path / f"r{i}.toml")
        files[-1].write_text(text)
    return load_recipe(kind, files, overrides)


def test_files_merge_left_to_right_then_overrides(tmp_path) -> None:
    r = recipe(
        tmp_path, BASE + "[train]\nmax_steps = 5\nbatch_size = 7\n", "[train]\nmax_steps = 6\n[optimizer]\nlr = 0.5\n",
        overrides=["optimizer.lr=1e-3", "run.dir=out/x", "eval.sampling.stop_token_ids=[1, 2]"],
    )  # fmt: skip
    assert (r.train.max_steps, r.train.batch_size, r.optimizer.lr, r.run.dir) == (6, 7, 1e-3, "out/x")
    assert r.eval.sampling.stop_token_ids == (1, 2)


def test_a_table_given_in_part_keeps_the_sections_defaults(tmp_path) -> None:
    r = recipe(tmp_path, BASE, overrides=["optimizer.beta2=0.9", "objective.options.min_rate=0.2"])
    assert r.optimizer.lr == recipe(tmp_path, BASE).optimizer.lr == 1e-5  # SFT's default, not AdamW's general one
    assert (r.objective.name, r.objective.options) == ("semi_ar", {"min_rate": 0.2})


def test_another_part_does_not_inherit_options(tmp_path) -> None:
    base = BASE + "options = { size = 5 }\n"
    r = recipe(tmp_path, base, overrides=["source.name=jsonl", "source.options.path=x"])
    assert (r.source.name, r.source.options) == ("jsonl", {"path": "x"})
    r = recipe(tmp_path, base, overrides=["source.options.path=x", "source.name=jsonl"])  # in whatever order they are said
    assert (r.source.name, r.source.options) == ("jsonl", {"path": "x"})
    assert recipe(tmp_path, base, overrides=["source.name=chained_arithmetic"]).source.options == {"size": 5}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.temperature=0", "greedy decoding gives identical responses and no advantage"),
        ("rollout.top_k=1", "greedy decoding gives identical responses"),
        ("rollout.top_p=0.9", "top_k and top_p are not for RL"),
        ("rollout.temperature=inf", "rollout.temperature should be a finite number"),
        ("rollout.temperature=1e-9", "should be 0 (argmax) or at least 0.001"),
        ("rollout.max_new_tokens=100000000000", "rollout.max_new_tokens: Input should be less than"),
        ("rollout.stop_token_ids=[9999999999]", "rollout.stop_token_ids.0: Input should be less than"),
        ("run.num_threads=100000", "run.num_threads: Input should be less than"),
        ("train.max_steps=" + "9" * 5000, "train.max_steps: Input should be a valid integer"),
    ],
)
def test_rl_refuses_what_it_cannot_train_on(tmp_path, override, message) -> None:
    with pytest.raises(UnmaskError) as error:
        recipe(tmp_path, BASE, overrides=[override], kind=RlRecipe)
    assert message in str(error.value)


@pytest.mark.parametrize("kind", [SftRecipe, RlRecipe])
def test_resolved_recipe_loads_back_equal(tmp_path, kind) -> None:
    r = recipe(tmp_path, BASE, overrides=["run.seed=3", "eval.every_steps=2"], kind=kind)
    assert recipe(tmp_path, to_toml(r), kind=kind) == r


@pytest.mark.parametrize(
    ("text", "override", "message"),
    [
        (BASE + "[train]\nbatchsize = 3\n", None, "r0.toml: unknown key 'train.batchsize'; the nearest known key is 'train.batch_size'"),
        (BASE, "trian.max_steps=3", "'trian.max_steps=3': unknown key 'trian'; the nearest known key is 'train'"),
        (BASE, "eval.sampling.temprature=1", "the nearest known key is 'eval.sampling.temperature'"),
        (BASE + '[train]\nbatch_size = "8"\n', None, "r0.toml: train.batch_size: Input should be a valid integer, found '8'"),
        (BASE, "train.batch_size=0", "train.batch_size: Input should be greater than or equal to 1, found 0"),
        (BASE, "train.batch_size=2.5", "train.batch_size: Input should be a valid integer, found 2.5"),
        (BASE, "optimizer.lr_schedule=step", "optimizer.lr_schedule: Input should be 'constant', 'linear' or 'cosine', found 'step'"),
        (BASE, "lr", "'lr': an override has the form section.key=value"),
        ("[source]\nname = 'x'\n", None, "key 'model' is missing and has no default"),
        ("[source]\nname = 'x'\n[model]\n", None, "give exactly one of model.path and model.preset"),
        ("a = = 1\n", None, "r0.toml: not valid TOML: Invalid value (at line 1, column 5)"),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, text, override, message) -> None:
    with pytest.raises(UnmaskError) as error:
        recipe(tmp_path, text, overrides=[override] if override else [])
    assert message in str(error.value).replace(f"{tmp_path}/", "")
    assert "\n" not in str(error.value)


def test_missing_file_is_named(tmp_path) -> None:
    with pytest.raises(UnmaskError, match=r"nowhere[.]toml: no such recipe file"):
        load_recipe(SftRecipe, [tmp_path / "nowhere.toml"])


def test_eval_modes_start_from_static_and_dynamic(tmp_path) -> None:
    text = '[source]\nname = "chained_arithmetic"\n[modes.static]\nmax_new_tokens = 9\n[modes.mine]\ntemperature = 0.5\n'
    modes = recipe(tmp_path, text, kind=EvalRecipe).modes
    assert modes["static"] == SamplingParams(max_new_tokens=9, temperature=0.0, remasking_strategy="low_confidence_static")
    assert modes["dynamic"] == SamplingParams(temperature=1.0, remasking_strategy="low_confidence_dynamic")
    assert modes["mine"] == SamplingParams(temperature=0.5)

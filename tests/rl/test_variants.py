"""Whole runs of every kind: families, objectives, baselines, value model, process rewards, block growth, workers."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from tests.grid import grid
from tests.recipes import RL, unmask, write_recipe
from unmask.metrics import read_metrics
from unmask.models.checkpoint import load_model
from unmask.rewards import REWARDS, Reward, Score
from unmask.rewards.exact import Exact
from unmask.train.checkpoint import list_checkpoints
from unmask.train.run import Run


class Parity(Reward):
    """Something that an untrained model gets right now and then, whatever its family."""

    Options = Exact.Options

    async def __call__(self, rollout, example):
        return Score(float(sum(rollout.trace.response_ids) % 3 == 0), "parity")


class TokenParity(Parity):
    async def __call__(self, rollout, example):
        even = [0.1 * (t % 2 == 0) for t in rollout.trace.response_ids]
        return Score(float(sum(rollout.trace.response_ids) % 3 == 0), "parity", even)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(REWARDS, "parity", Parity)
    monkeypatch.setitem(REWARDS, "token_parity", TokenParity)

    def run(*words: str, steps: int = 3) -> list[dict]:
        run.count += 1
        run.folder = tmp_path / f"run-{run.count}"
        common = ["reward.name=parity", f"train.max_steps={steps}", "eval.every_steps=0", f"run.dir={run.folder}"]
        result = unmask("rl", write_recipe(tmp_path, "rl", RL), *common, *words)
        assert result.returncode == 0, result.stderr
        return read_metrics(run.folder)

    run.count = 0
    return run


FAMILIES = ("sdar", "sdar_moe", "dream", "llada", "mmada")


@grid(2, family=FAMILIES, value=["false", "true"])
def test_every_family_trains_what_it_sampled(run, family, value) -> None:
    """Sampler and trainer agree (mismatch KL below 1e-8), the first ratio is 1, the loss has a gradient."""
    records = run(f"model.preset={family}/tiny", f"value.enabled={value}", "train.num_minibatches=1")
    assert all(r["num_updates"] == 1 and r["grad_norm"] > 0 for r in records)
    assert all(abs(r["mismatch_kl"]) < 1e-8 and abs(r["kl"]) < 1e-8 and r["clip_share"] == 0 for r in records)
    assert all(0 < r["entropy"] < 4 for r in records)
    assert all(("value_loss" in r) == (value == "true") for r in records)


@pytest.mark.parametrize("objective", ["random_masking", "coupled"])
@pytest.mark.parametrize("family", ["sdar", "llada"])
def test_baselines_train(run, family, objective) -> None:
    records = run(f"model.preset={family}/tiny", f"objective.name={objective}", "train.num_minibatches=1", "train.num_epochs=2")
    assert all(r["num_updates"] == 2 and r["grad_norm"] > 0 for r in records)
    assert all(abs(r["mismatch_kl"]) < 1e-8 for r in records)  # of the sampler's own views, though others are trained


def test_approximate_caches_are_measured_and_corrected(run) -> None:
    """The sampler's log-probs are not the trainer's: the mismatch is seen, old ones are recomputed, ratios begin at 1."""
    words = ("model.preset=llada/tiny", "rollout.cache=dual", "rollout.block_size=4", "train.num_minibatches=1")
    records = run(*words, "optimizer.lr=1e-6")
    assert all(r["mismatch_kl"] > 1e-7 for r in records)
    assert all(abs(r["kl"]) < 1e-9 and r["clip_share"] == 0 for r in records)
    trusted = run(*words, "optimizer.lr=1e-6", "train.old_logprobs=rollout")
    assert all(r["kl"] == pytest.approx(r["mismatch_kl"]) for r in trusted)


def test_the_value_model_learns_and_the_policy_waits(run) -> None:
    words = ("value.enabled=true", "advantage=none", "value.optimizer.lr=3e-3", "value.num_epochs=4", "value.lam=0.9")
    records = run(*words, "value.warmup_steps=6", "train.prompts_per_step=8", steps=8)
    assert [r["num_updates"] for r in records] == [0] * 6 + [2] * 2
    losses = [r["value_loss"] for r in records]
    assert np.mean(losses[4:]) < 0.65 * losses[0]  # from zero to the mean reward: the variance is left
    assert records[0]["explained_variance"] == pytest.approx(0.0, abs=1e-6)  # the head starts at zero
    checkpoint = list_checkpoints(run.folder / "checkpoints")[-1]
    value = load_model(checkpoint / "value_model", head="value")
    assert value.value_head.weight.abs().max() > 0
    assert not torch.equal(value.embed_tokens.weight, load_model(checkpoint).embed_tokens.weight)


def test_the_value_model_may_start_elsewhere(run) -> None:
    run("value.enabled=true", steps=1)
    first = list_checkpoints(run.folder / "checkpoints")[-1]
    run("value.enabled=true", f"value.path={first / 'value_model'}", "value.optimizer.lr=1e-30", steps=1)
    second = list_checkpoints(run.folder / "checkpoints")[-1]
    heads = [load_model(c / "value_model", head="value").value_head.weight for c in (first, second)]
    assert torch.equal(*heads)


@pytest.mark.parametrize("value", ["false", "true"])
def test_process_rewards_train(run, value) -> None:
    records = run("reward.name=token_parity", f"value.enabled={value}")
    assert all(r["num_updates"] == 2 and r["grad_norm"] > 0 for r in records)
    assert all(r["groups_without_signal"] == 0 for r in records)


def test_a_frozen_reference(run) -> None:
    """The KL is to the model the run began with: it grows from step to step, and without movement it is zero."""
    records = run("objective.options.kl_to=reference", "train.num_minibatches=1", steps=4)
    assert abs(records[0]["ref_kl"]) < 1e-9
    assert records[3]["ref_kl"] > 1e-4
    other = run("objective.options.kl_to=reference", f"reference.path={run.folder}", "train.num_minibatches=1", steps=1)
    assert other[0]["ref_kl"] > 1e-4


def test_a_resumed_run_keeps_the_reference_it_began_with(run, tmp_path) -> None:
    """Its model is the newest checkpoint of a run that has trained on in the meantime."""
    run("train.num_minibatches=1", "checkpoint.every_steps=1", steps=1)
    base = run.folder
    words = ["reward.name=parity", "eval.every_steps=0", "objective.options.kl_to=reference"]
    recipe = write_recipe(tmp_path, "bare", RL.replace('[model]\npreset = "sdar/tiny"\n', ""))
    words += [f"model={{path='{base}'}}", "train.num_minibatches=1", "optimizer.lr=3e-3"]
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert unmask("rl", recipe, *words, "train.max_steps=4", f"run.dir={whole}").returncode == 0
    assert unmask("rl", recipe, *words, "train.max_steps=2", f"run.dir={torn}").returncode == 0
    again = ["reward.name=parity", "eval.every_steps=0", "train.num_minibatches=1", "train.max_steps=3", f"run.dir={base}"]
    again += ["checkpoint.every_steps=1", "checkpoint.keep_last=5"]
    assert unmask("rl", write_recipe(tmp_path, "rl", RL), *again, "--resume").returncode == 0
    assert unmask("rl", recipe, *words, "train.max_steps=4", f"run.dir={torn}", "--resume").returncode == 0
    assert (torn / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    shutil.rmtree(list_checkpoints(base / "checkpoints")[0])
    gone = unmask("rl", recipe, *words, "train.max_steps=5", f"run.dir={torn}", "--resume")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    assert "origins.json: model was" in gone.stderr
    assert "which is gone; put it back, or name a copy of it there" in gone.stderr


def test_a_run_that_recorded_nothing_may_be_started_again(tmp_path) -> None:
    """A mistake that the first step finds leaves a folder; the corrected recipe starts in it. A run is not written over."""
    recipe, folder = write_recipe(tmp_path, "rl", RL), tmp_path / "run"
    words = ["reward.name=chained_steps", "reward.options={modulus=10}", "train.max_steps=2", "eval.every_steps=0"]
    wrong = unmask("rl", recipe, *words, "source.options.modulus=3", f"run.dir={folder}")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "reward.options.modulus should be the source's" in wrong.stderr
    assert unmask("rl", recipe, *words, f"run.dir={folder}").returncode == 0
    refused = unmask("rl", recipe, *words, f"run.dir={folder}")
    assert refused.returncode == 2
    assert "is not empty" in refused.stderr


def test_block_growth(run) -> None:
    """4 and 8 first: no sampler's view is trained. Then both 8, exactly replayed. The model's own block size follows."""
    stages = "[{from_step=0,rollout_block_size=4,train_block_size=8},{from_step=2,rollout_block_size=8,train_block_size=8}]"
    records = run(f"block_schedule={stages}", "train.num_minibatches=1", steps=4)
    assert all(r["num_updates"] == 1 and r["clip_share"] == 0 for r in records)
    assert all(abs(r["mismatch_kl"]) < 1e-8 for r in records)
    assert load_model(list_checkpoints(run.folder / "checkpoints")[-1]).spec.block_size == 8


def test_dynamic_sampling_replaces_groups_without_signal(run) -> None:
    words = ("train.group_size=2", "train.max_sampling_rounds=6", "train.prompts_per_step=4")
    records = run(*words)
    for r in records:
        assert r["groups_trained"] == r["num_groups"] - r["groups_without_signal"]
        assert r["groups_trained"] == 4 or r["sampling_rounds"] == 6
    assert any(r["sampling_rounds"] > 1 and r["groups_trained"] == 4 for r in records)
    assert all(r["sampling_rounds"] == 1 for r in run(*words[:1]))


def test_the_window_of_accuracies(run) -> None:
    for r in run("train.min_accuracy=0.3", "train.max_accuracy=0.6", "train.prompts_per_step=8"):
        assert r["groups_trained"] < r["num_groups"] - r["groups_without_signal"]


def test_batch_advantages_train_groups_without_variance(run) -> None:
    assert all(r["groups_trained"] == 4 for r in run("advantage=batch_zscore", "train.group_size=2"))


def test_cut_responses_are_left_out(run) -> None:
    records = run("train.drops_cut_responses=true", "train.num_minibatches=1")
    assert all(r["cut_share"] > 0.3 for r in records)
    everything = run("train.num_minibatches=1", steps=1)
    assert records[0]["num_trained_tokens"] < everything[0]["num_trained_tokens"]


def test_evaluation_before_the_first_step(run) -> None:
    records = run("eval.every_steps=2", "eval.at_start=true", steps=2)
    assert [r["step"] for r in records if "eval/accuracy" in r] == [0, 2]
    assert [r["step"] for r in run("eval.every_steps=2", steps=2) if "eval/accuracy" in r] == [2]


def test_nothing_to_train_is_said_and_counted(tmp_path) -> None:
    words = ["reward.options.wrong_reward=0.0", "train.max_steps=2", f"run.dir={tmp_path / 'run'}"]
    result = unmask("rl", write_recipe(tmp_path, "rl", RL), *words)
    assert result.returncode == 0
    assert "step 1: no group carries a signal; nothing was trained" in result.stderr
    assert [r["num_skipped_steps"] for r in read_metrics(tmp_path / "run") if "reward_mean" in r] == [1, 2]


def test_a_value_model_without_anything_to_train_is_said_too(run, capsys) -> None:
    """All responses cut and dropped: neither model has a row."""
    words = ["value.enabled=true", "train.drops_cut_responses=true", "rollout.max_new_tokens=1", "rollout.ignore_eos=true"]
    records = run(*words, steps=2)
    assert [r["num_skipped_steps"] for r in records] == [1, 2]
    assert all("value_loss" not in r for r in records)


def test_block_growth_of_the_value_model(run) -> None:
    run("value.enabled=true", "block_schedule=[{rollout_block_size=4,train_block_size=8}]", steps=1)
    checkpoint = list_checkpoints(run.folder / "checkpoints")[-1]
    models = load_model(checkpoint), load_model(checkpoint / "value_model", head="value")
    assert [model.spec.block_size for model in models] == [8, 8]


def test_everything_at_once_resumes_exactly(tmp_path, monkeypatch) -> None:
    """Value model, frozen reference, replaced groups, two block sizes, two epochs: torn down in a step and resumed."""
    monkeypatch.setitem(REWARDS, "parity", Parity)
    stages = "[{from_step=0,rollout_block_size=4,train_block_size=8},{from_step=3,rollout_block_size=8,train_block_size=8}]"
    words = ["reward.name=parity", "train.max_steps=6", "value.enabled=true", "objective.options.kl_to=reference"]
    words += ["train.max_sampling_rounds=3", "train.group_size=2", f"block_schedule={stages}", "train.num_epochs=2"]
    recipe = write_recipe(tmp_path, "rl", RL)
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    assert unmask("rl", recipe, *words, f"run.dir={whole}").returncode == 0

    finish, calls = Run.finish_step, []

    def dies(self, *args):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        finish(self, *args)

    monkeypatch.setattr(Run, "finish_step", dies)
    assert unmask("rl", recipe, *words, f"run.dir={torn}").returncode == 130
    assert unmask("rl", recipe, *words, f"run.dir={torn}", "--resume").returncode == 0
    assert (torn / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    ends = [list_checkpoints(folder / "checkpoints")[-1] for folder in (whole, torn)]
    for name in ("model.safetensors", "value_model/model.safetensors", "config.json"):
        assert (ends[0] / name).read_bytes() == (ends[1] / name).read_bytes(), name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["block_schedule=[{from_step=1,rollout_block_size=4,train_block_size=8}]"],
            "from_step should begin with 0 and ascend",
        ),
        (
            [
                "block_schedule=[{rollout_block_size=4,train_block_size=8},{from_step=12,rollout_block_size=8,train_block_size=8}]"
            ],
            "from_step 12 is not below train.max_steps 12",
        ),
        (["train.min_accuracy=0.8", "train.max_accuracy=0.2"], "min_accuracy 0.8 is above max_accuracy 0.2"),
        (
            ["model.preset=llada/tiny", "block_schedule=[{rollout_block_size=4,train_block_size=8}]"],
            "is for block models; llada",
        ),
        (["objective.options.kl_too=old"], "unknown key 'kl_too'; the nearest known key is 'kl_to'"),
        (["value.path=nowhere", "value.enabled=true"], "nowhere"),
        (["value.path=nowhere"], "value.path is given, but there is no value model: set value.enabled to true"),
        (["rollout.cache=prefix"], "rollout: "),
        (["eval.sampling.cache=dual"], "eval.sampling: "),
        (["engine.num_pages=1"], "ask for fewer tokens, or give the engine more memory"),
        (["optimizer.lr=inf"], "optimizer.lr should be a finite number"),
        (["objective.options.clip_eps_high=inf"], "objective.options.clip_eps_high should be a finite number"),
        (["rollout.confidence_threshold=nan"], "rollout.confidence_threshold should be a finite number"),
        (["objective.options.block_size=6"], "blocks of 6 are trained on rollouts with blocks of 4: should be a multiple"),
        (["reference.path=."], "reference.path is given, but no KL is to it: set objective.options.kl_to to reference"),
        (["value.enabled=true", "value.warmup_steps=12"], "value.warmup_steps 12 leaves nothing of train.max_steps 12"),
        (
            ["objective.name=coupled", "objective.options={max_rate=0.0, min_rate=0.0}"],
            "max_rate: Input should be greater",
        ),
        (["rollout.min_tokens=2"], "min_tokens is not for RL"),
        (["value.lamb=1"], "unknown key 'value.lamb'; the nearest known key is 'value.lam'"),
    ],
)
def test_bad_recipes_are_one_line(tmp_path, words, message) -> None:
    result = unmask("rl", write_recipe(tmp_path, "rl", RL), f"run.dir={tmp_path / 'run'}", *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ("value", ["value.enabled=true"]),
        ("reference", ["objective.options.kl_to=reference"]),
    ],
)
@pytest.mark.parametrize(
    ("preset", "change", "message"),
    [
        ("sdar/tiny", "vocab_size=999", "has vocab_size 999, the policy"),
        ("llada/tiny", "mask_token_id=2", "the policy"),
    ],
)
def test_other_models_have_to_read_the_policys_rows(tmp_path, section, words, preset, change, message) -> None:
    other = tmp_path / "other"
    assert unmask("checkpoint", "new", preset, other, change).returncode == 0
    result = unmask("rl", write_recipe(tmp_path, "rl", RL), f"run.dir={tmp_path / 'run'}", *words, f"{section}.path={other}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"{section}.path {other}: has " in result.stderr
    assert message in result.stderr
    assert not (tmp_path / "run").exists()

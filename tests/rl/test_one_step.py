"""One RL step against its definition: which prompts, which seeds, which rows, how many updates, at which rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.recipes import RL, write_recipe
from unmask import launch
from unmask.config import RlRecipe, load_recipe
from unmask.data.sources import EpochOrder
from unmask.metrics import read_metrics
from unmask.objectives.rows import score_targets
from unmask.rl import loop
from unmask.train.trainer import Trainer


@pytest.fixture
def spied(tmp_path, monkeypatch):
    """Runs a recipe; returns what the loop asked of the sampler and of the trainer."""

    def run(*words: str) -> dict[str, list]:
        seen: dict[str, list] = {"rollouts": [], "updates": [], "lr": [], "temperature": []}
        make, update, score = loop.make_rollouts, Trainer.update, score_targets

        def spy_make(model, tokenizer, examples, params, reward, **options):
            groups = make(model, tokenizer, examples, params, reward, **options)
            seen["rollouts"].append(([e.id for e in examples], options, groups))
            return groups

        def spy_update(self, rows, loss_fn):
            stats = update(self, rows, loss_fn)
            seen["updates"].append(rows)
            seen["lr"].append({group["lr"] for group in self.optimizer.param_groups})
            return stats

        def spy_score(model, batch, backend, **options):
            seen["temperature"].append(options["temperature"])
            return score(model, batch, backend, **options)

        monkeypatch.setattr(loop, "make_rollouts", spy_make)
        monkeypatch.setattr(loop, "score_targets", spy_score)
        monkeypatch.setattr(Trainer, "update", spy_update)
        seen["folder"] = tmp_path / "run"
        recipe = load_recipe(RlRecipe, [write_recipe(tmp_path, "rl", RL)], [f"run.dir={tmp_path / 'run'}", *words])
        launch.start(recipe)
        monkeypatch.undo()
        return seen

    return run


COMMON = ("train.max_steps=3", "eval.every_steps=0", "rollout.temperature=0.8", "train.num_epochs=2", "run.seed=5")


def test_prompts_and_seeds(spied) -> None:
    seen = spied(*COMMON)
    order = EpochOrder(100_000, seed=5)
    wanted = [[f"train-{order[n][0]}" for n in range(4 * step, 4 * step + 4)] for step in range(3)]
    assert [ids for ids, _, _ in seen["rollouts"]] == wanted
    assert [options["seed_keys"] for _, options, _ in seen["rollouts"]] == [(5, step) for step in range(3)]
    seeds = [r.trace.seed for _, _, groups in seen["rollouts"] for g in groups for r in g.rollouts]
    assert len(set(seeds)) == 3 * 4 * 4
    versions = [groups[0].rollouts[0].trace.policy_version for _, _, groups in seen["rollouts"]]
    assert versions[0] == 0
    assert versions == sorted(set(versions))  # optimizer steps the weights had seen


def test_rows_are_the_rollouts_with_signal(spied) -> None:
    """Each epoch trains every response with signal once, in minibatches; weights and old log-probs as defined."""
    seen = spied(*COMMON)
    updates = list(seen["updates"])
    for step, (_, _, groups) in enumerate(seen["rollouts"]):
        signal = []
        for group in groups:
            rewards = np.array([r.reward for r in group.rollouts])
            for rollout, reward in zip(group.rollouts, rewards, strict=True):
                if rewards.std() > 0 and reward != rewards.mean():
                    signal.append(((reward - rewards.mean()) / rewards.std(), rollout.trace))
        assert signal, f"step {step} proves nothing"
        num_parts = min(2, len(signal))
        for _ in range(2):  # epochs
            parts, updates = updates[:num_parts], updates[num_parts:]
            assert sum(len(rows) for rows in parts) == len(signal)
            got = sorted(round(float(row.values["advantage"][0]), 9) for rows in parts for row in rows)
            assert got == sorted(round(float(a), 9) for a, _ in signal)
            for rows in parts:
                for row in rows:  # trace_step: a mean over each step's tokens, then over responses
                    for pair in set(row.values["view"].tolist()):
                        share = row.values["weight"][row.values["view"] == pair].sum()
                        assert share == pytest.approx(1 / len(rows))
            olds = sorted(float(row.values["old_logprobs"].sum()) for rows in parts for row in rows)
            wanted = sorted(sum(t.logprobs[: t.num_response_tokens]) for _, t in signal)
            assert olds == pytest.approx(wanted, abs=1e-4)
    assert not updates
    assert set(seen["temperature"]) == {0.8}  # the trainer scores under the sampler's temperature


def test_epochs_shuffle_differently(spied) -> None:
    seen = spied(*COMMON, "train.prompts_per_step=8")
    first, second = ([[row.input_ids.tolist() for row in rows] for rows in seen["updates"][i : i + 2]] for i in (0, 2))
    assert first != second
    assert sorted(str(r) for rows in first for r in rows) == sorted(str(r) for rows in second for r in rows)


def test_the_schedule_spans_all_updates(spied) -> None:
    """max_steps x minibatches x epochs optimizer steps: the last one is at the end of the schedule, not the first."""
    words = ("optimizer.lr_schedule=linear", "optimizer.final_lr_ratio=0.0", "optimizer.warmup_steps=1")
    seen = spied(*COMMON, *words)
    rates = [next(iter(rate)) for rate in seen["lr"]]
    assert all(len(rate) == 1 for rate in seen["lr"])
    total = 3 * 2 * 2
    wanted = [1e-3 * (1 - max(0, i - 1) / (total - 1)) if i else 1e-3 for i in range(len(rates))]
    assert rates == pytest.approx(wanted)


def test_the_value_models_warm_up_is_no_part_of_the_policys_schedule(spied) -> None:
    """Policy: (3 - 1) steps x 2 minibatches x 2 epochs. Value model: 3 steps x 3 minibatches x 1 epoch."""
    parts, keys = ("optimizer", "value.optimizer"), ("lr_schedule=linear", "final_lr_ratio=0.0")
    schedules = [f"{part}.{key}" for part in parts for key in keys]
    words = ("value.enabled=true", "value.warmup_steps=1", "value.num_minibatches=3", "value.optimizer.lr=1e-2")
    seen = spied(*COMMON, *schedules, *words, "advantage=none")  # every response has a signal
    rates = [next(iter(rate)) for rate in seen["lr"]]
    policy, value = ([rate for rate in rates if (rate > 1e-3) == is_value] for is_value in (False, True))
    assert value == pytest.approx([1e-2 * (1 - i / 9) for i in range(9)][: len(value)])
    assert policy == pytest.approx([1e-3 * (1 - i / 8) for i in range(8)])


def test_every_log_prob_is_under_the_samplers_temperature(spied) -> None:
    """Those of the policy before the update, of the reference, and of the update itself."""
    words = ("train.old_logprobs=recompute", "objective.options.kl_to=reference", "train.num_minibatches=1")
    seen = spied("train.max_steps=1", "eval.every_steps=0", "rollout.temperature=0.7", *words)
    assert seen["temperature"] == [0.7] * 3


@pytest.mark.parametrize("objective", ["random_masking", "coupled"])
def test_masks_differ_from_pass_to_pass(spied, objective) -> None:
    words = (f"objective.name={objective}", "train.num_minibatches=1", "train.num_epochs=2", "train.max_steps=1")
    first, second = (
        sorted(str(row.input_ids.tolist()) for row in rows) for rows in spied("eval.every_steps=0", *words)["updates"]
    )
    assert first != second


def test_responses_share_the_mean_of_their_minibatch(spied) -> None:
    """sequence: every response weighs 1 / responses of the minibatch, so that a minibatch's weights add up to 1."""
    seen = spied(*COMMON, "objective.options.loss_normalization=sequence", "train.prompts_per_step=8")
    assert any(len(rows) > 1 for rows in seen["updates"])
    for rows in seen["updates"]:
        assert sum(row.values["weight"].sum() for row in rows) == pytest.approx(1.0)


def test_replaced_groups_take_no_more_prompts_than_they_need(spied) -> None:
    words = ("train.max_sampling_rounds=4", "train.group_size=2", "train.prompts_per_step=6", "train.max_steps=2")
    seen = spied("eval.every_steps=0", *words)
    taken = [example for ids, _, _ in seen["rollouts"] for example in ids]
    order = EpochOrder(100_000, seed=0)
    assert taken == [f"train-{order[n][0]}" for n in range(len(taken))]  # none twice, none skipped
    wanted, rounds = 6, []
    for ids, options, groups in seen["rollouts"]:
        if options["seed_keys"] in ((0, 0), (0, 1)):
            wanted = 6
        assert len(ids) == wanted
        wanted -= sum(len({r.reward for r in group.rollouts}) > 1 for group in groups)
        rounds.append(options["seed_keys"])
    assert len(set(rounds)) == len(rounds) > 2


def test_metrics_are_what_they_say(spied) -> None:
    seen = spied("train.max_steps=1", "eval.every_steps=0", "train.num_minibatches=1")
    record = read_metrics(seen["folder"])[0]
    rollouts = [r for _, _, groups in seen["rollouts"] for g in groups for r in g.rollouts]
    assert record["reward_mean"] == pytest.approx(np.mean([r.reward for r in rollouts]))
    assert record["reward_std"] == pytest.approx(np.std([r.reward for r in rollouts]))
    assert record["response_length"] == pytest.approx(np.mean([r.trace.num_response_tokens for r in rollouts]))
    assert record["cut_share"] == np.mean([r.trace.finish_reason == "length" for r in rollouts])
    [rows] = seen["updates"]
    logprobs = np.concatenate([row.values["old_logprobs"] for row in rows])
    assert record["num_trained_tokens"] == len(logprobs)
    assert record["neg_logprob"] == pytest.approx(-logprobs.mean(), abs=1e-5)  # one update: new = old
    assert abs(record["kl"]) < 1e-9
    weights, advantages = (np.concatenate([row.values[k] for row in rows]) for k in ("weight", "advantage"))
    assert record["loss"] == pytest.approx(-(weights * advantages).sum(), abs=1e-6)


@pytest.mark.parametrize("kind", ["recompute", "auto"])
def test_old_logprobs_are_recomputed_when_asked_or_needed(spied, monkeypatch, kind) -> None:
    calls = []
    original = loop.set_logprobs
    monkeypatch.setattr(loop, "set_logprobs", lambda *a: (calls.append(len(a[1])), original(*a)))
    precision = "float32" if kind == "recompute" else "bfloat16"
    spied("train.max_steps=1", f"train.old_logprobs={kind}", f"run.precision={precision}", "eval.every_steps=1")
    assert calls
    calls.clear()


def test_half_precision_runs_end_to_end(spied) -> None:
    """Autocast through rollouts (with the block cache), updates and evaluation."""
    seen = spied("train.max_steps=2", "run.precision=bfloat16", "eval.every_steps=1", "train.num_minibatches=1")
    for record in read_metrics(seen["folder"]):
        if "kl" in record:
            assert abs(record["kl"]) < 1e-6  # old log-probs are the trainer's own
            assert record["clip_share"] == 0
    assert all(torch.isfinite(torch.tensor(r["grad_norm"])) for r in read_metrics(seen["folder"]) if "grad_norm" in r)

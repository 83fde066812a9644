"""Pieces of the RL loop: seeds, minibatches, metrics, groups, recomputed log-probs, evaluation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from tests.recipes import RL, SFT, unmask, write_recipe
from unmask import launch
from unmask.config import Plugin
from unmask.config.training import OptimizerConfig
from unmask.data.chained_arithmetic import ChainedArithmetic
from unmask.data.chat import ChatTokenizer
from unmask.dist import Ranks
from unmask.engine import Engine
from unmask.errors import UnmaskError
from unmask.evaluate import evaluate, take_examples
from unmask.metrics import read_metrics
from unmask.models.checkpoint import new_model
from unmask.objectives.rows import collate, pack_rows, score_targets
from unmask.objectives.trace_rl import TraceRL
from unmask.rl.collect import Collected
from unmask.rl.loop import set_logprobs
from unmask.rl.metrics import rollout_metrics, update_metrics
from unmask.rl.minibatches import minibatches
from unmask.rl.rollout import derive_seed, make_rollouts
from unmask.rl.scoring import RewardPool
from unmask.train import stopwatch
from unmask.train.stopwatch import Stopwatch
from unmask.train.trainer import Trainer
from unmask.types import SamplingParams


@pytest.fixture(scope="module")
def parts():
    source = ChainedArithmetic(ChainedArithmetic.Options(min_operations=1, max_operations=2), "held_out", 0)
    tokenizer = ChatTokenizer.tiny(source.vocabulary)
    special = {"vocab_size": len(tokenizer.tokenizer), "eos_token_id": [1], "pad_token_id": 0, "mask_token_id": 2}
    model = new_model("sdar/tiny", 0, initializer_range=0.1, **special)
    return model, tokenizer, source, RewardPool(Plugin(name="exact", options={"wrong_reward": 0.5}))


PARAMS = SamplingParams(max_new_tokens=12)


def test_groups_are_independent_of_each_other(parts) -> None:
    model, tokenizer, source, reward = parts
    examples = [source[i] for i in range(4)]
    groups = make_rollouts(Engine(model), tokenizer, examples, PARAMS, reward, group_size=3, seed_keys=(7, 1))
    assert [len(g.rollouts) for g in groups] == [3] * 4
    seeds = {r.trace.seed for g in groups for r in g.rollouts}
    assert len(seeds) == 12
    assert len({tuple(r.trace.response_ids) for r in groups[0].rollouts}) > 1  # members differ: there is something to compare
    fewer = make_rollouts(
        Engine(model, max_sequences=2), tokenizer, examples[:2], PARAMS, reward, group_size=3, seed_keys=(7, 1)
    )
    for a, b in zip(fewer, groups, strict=False):
        assert [r.trace.canvas_ids for r in a.rollouts] == [r.trace.canvas_ids for r in b.rollouts]
    later = make_rollouts(Engine(model), tokenizer, examples, PARAMS, reward, group_size=3, seed_keys=(7, 2))
    assert [r.trace.canvas_ids for r in later[0].rollouts] != [r.trace.canvas_ids for r in groups[0].rollouts]


def test_text_is_read_from_the_response_only(parts) -> None:
    model, tokenizer, source, reward = parts
    for group in make_rollouts(Engine(model), tokenizer, [source[0]], PARAMS, reward, group_size=8):
        for rollout in group.rollouts:
            assert rollout.text == tokenizer.decode(rollout.trace.canvas_ids[: rollout.trace.num_response_tokens])


def test_derived_seeds() -> None:
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert derive_seed("eval", 0) == derive_seed("eval", 0)
    assert 0 <= derive_seed(0) < 2**62


def test_minibatches_are_even_and_complete(parts) -> None:
    rollouts = list(range(10))
    parts_ = minibatches(rollouts, 4, seed=1)  # type: ignore[arg-type]
    assert sorted(len(p) for p in parts_) == [2, 2, 3, 3]
    assert sorted(x for p in parts_ for x in p) == rollouts
    assert parts_ == minibatches(rollouts, 4, seed=1)  # type: ignore[arg-type]
    assert parts_ != minibatches(rollouts, 4, seed=2)  # type: ignore[arg-type]
    assert minibatches([], 4, seed=1) == []
    assert len(minibatches(rollouts[:2], 4, seed=1)) == 2  # never an empty one


def test_metrics_without_updates_are_counts(parts) -> None:
    model, tokenizer, source, reward = parts
    groups = make_rollouts(Engine(model), tokenizer, [source[0]], PARAMS, reward, group_size=2)
    for group in groups:
        for rollout in group.rollouts:
            rollout.reward = 0.0
    metrics = {**rollout_metrics(Collected(groups, groups, 1)), **update_metrics([])}
    assert (metrics["groups_without_signal"], metrics["num_updates"], metrics["num_trained_tokens"]) == (1, 0, 0)
    assert not {"loss", "kl", "entropy", "grad_norm", "lr"} & metrics.keys()  # nothing was measured: no point in a curve
    assert all(np.isfinite(v) for v in metrics.values())


def test_responses_are_scored_while_others_are_decoded(parts, monkeypatch) -> None:
    model, tokenizer, source, reward = parts
    events: list[str] = []
    stream, submit = Engine.stream, RewardPool.submit

    def spied_stream(self, *args):
        for index, output in stream(self, *args):
            if output.trace is not None:
                events.append("decoded")
            yield index, output

    monkeypatch.setattr(Engine, "stream", spied_stream)
    monkeypatch.setattr(RewardPool, "submit", lambda *args: (events.append("submitted"), submit(*args))[1])
    make_rollouts(Engine(model, max_sequences=2), tokenizer, [source[i] for i in range(3)], PARAMS, reward, group_size=2)
    assert events == ["decoded", "submitted"] * 6


def test_a_run_has_one_pool_and_closes_it(tmp_path, monkeypatch) -> None:
    """Rollouts and evaluations share it; without an evaluation, SFT does not start what it will not use."""
    events: list[str] = []

    class Spied(RewardPool):
        def __enter__(self):
            events.append("entered")
            return super().__enter__()

        def __exit__(self, *exc_info):
            events.append("left")
            super().__exit__(*exc_info)

    monkeypatch.setattr(launch, "RewardPool", Spied)
    recipe = write_recipe(tmp_path, "rl", RL)
    assert unmask("rl", recipe, "train.max_steps=1", "eval.every_steps=1", f"run.dir={tmp_path / 'rl'}").returncode == 0
    assert events == ["entered", "left"]
    words = ["train.max_steps=1", "eval.every_steps=0", f"run.dir={tmp_path / 'sft'}"]
    assert unmask("sft", write_recipe(tmp_path, "sft", SFT), *words).returncode == 0
    assert events == ["entered", "left"]


def test_a_function_in_a_file_is_a_reward(tmp_path) -> None:
    """The same run with one worker and with two; a file that is not there is said before there is a run folder."""
    recipe = write_recipe(tmp_path, "rl", RL)
    (tmp_path / "own.py").write_text("def f(rollout, example):\n    return len(rollout.pieces) % 3 / 2, example.id")
    words = ["train.max_steps=2", "eval.every_steps=0", f"reward.name={tmp_path / 'own.py'}:f"]
    for workers in (1, 2):
        run = [*words, f"reward.options.num_workers={workers}", f"run.dir={tmp_path / str(workers)}"]
        result = unmask("rl", recipe, *run)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "1" / "metrics.jsonl").read_bytes() == (tmp_path / "2" / "metrics.jsonl").read_bytes()
    assert any(record["num_updates"] for record in read_metrics(tmp_path / "1"))
    wrong = unmask("rl", recipe, "reward.name=gone.py:f", f"run.dir={tmp_path / 'none'}")
    assert (wrong.returncode, wrong.stderr) == (2, "error: reward gone.py:f: no such file\n")
    assert not (tmp_path / "none").exists()


def test_evaluations_see_the_weights_as_they_are(tmp_path) -> None:
    """A run's evaluation is that of its checkpoint: nothing that was computed with older weights is used again."""
    run = tmp_path / "run"
    words = ["train.max_steps=60", "eval.every_steps=20", "checkpoint.every_steps=20", "checkpoint.keep_last=9"]
    assert unmask("sft", write_recipe(tmp_path, "sft", SFT), *words, f"run.dir={run}").returncode == 0
    measured = {r["step"]: r["eval/tokens_per_forward"] for r in read_metrics(run) if "eval/tokens_per_forward" in r}
    assert len(set(measured.values())) > 1
    for step, wanted in measured.items():
        folder, out = run / "checkpoints" / f"step-{step:08d}", tmp_path / f"eval-{step}"
        settings = ["source.name=chained_arithmetic", "source.options={min_operations=1,max_operations=2}", "num_examples=4"]
        settings += [f"modes.{mode}={{max_new_tokens=12,temperature=0.0}}" for mode in ("dynamic", "static")]
        assert unmask("eval", folder, *settings, "--output", out).returncode == 0
        (task,) = json.loads((out / "results.json").read_text())["tasks"].values()
        assert task["modes"]["dynamic"]["metrics"]["tokens_per_forward"] == pytest.approx(wanted)


def test_accuracy_and_pass_at_group(parts) -> None:
    """A right answer has reward 1; something for trying is not right."""
    model, tokenizer, source, reward = parts
    groups = make_rollouts(Engine(model), tokenizer, [source[i] for i in range(3)], PARAMS, reward, group_size=4)
    for group, rewards in zip(groups, ((1.0, 0.5, 0.5, 0.0), (0.5, 0.5, 0.5, 0.5), (1.0, 1.0, 1.0, 1.0)), strict=True):
        for rollout, value in zip(group.rollouts, rewards, strict=True):
            rollout.reward = value
    groups[0].rollouts[0].reward_parts, groups[1].rollouts[2].reward_parts = {"exact": 1.0, "length": 0.5}, {"exact": 0.5}
    metrics = rollout_metrics(Collected(groups, groups[:1], 2))
    assert {name: value for name, value in metrics.items() if "/" in name} == {"reward/exact": 0.75, "reward/length": 0.5}
    assert metrics["accuracy"] == pytest.approx(5 / 12)
    assert metrics["pass_at_group"] == pytest.approx(2 / 3)
    assert (metrics["groups_without_signal"], metrics["groups_trained"], metrics["sampling_rounds"]) == (2, 1, 2)


def test_the_mismatch_is_that_of_the_first_update() -> None:
    """Later ones have other weights than those that sampled."""
    sums = dict.fromkeys(("loss", "grad_norm", "lr", "kl_sum", "clip_sum", "entropy_sum", "neg_logprob_sum"), 1.0)
    stats = [{**sums, "num_targets": n, "num_tokens": 9, "mismatch_sum": m} for n, m in ((10.0, 0.5), (20.0, 40.0))]
    assert update_metrics(stats)["mismatch_kl"] == pytest.approx(0.05)


def test_seconds_and_memory_are_where_they_belong(monkeypatch) -> None:
    now = iter([0.0, 1.0, 6.0, 10.0])
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: next(now))
    usage = type("Usage", (), {"ru_maxrss": 2_000_000})
    monkeypatch.setattr(stopwatch.resource, "getrusage", lambda who: usage)
    monkeypatch.setattr(stopwatch.sys, "platform", "linux")
    ranks, work = Ranks(0, 2), [3 * 10**12, 50]
    monkeypatch.setattr(stopwatch, "peak_flops", lambda device, precision: 10e12)
    clock = Stopwatch(torch.device("cpu"), ranks, num_flops=lambda: work[0], num_tokens=lambda: work[1])
    clock.begin("rollout_s")
    clock.move("reward_s", 2.0)
    ranks.waited_s = 0.5
    clock.begin("update_s")
    work[:] = 13 * 10**12, 450
    wanted = {
        "rollout_s": 3.0, "reward_s": 2.0, "update_s": 4.0, "step_s": 10.0, "rollout_wait_s": 0.5, "step_wait_s": 0.5,
        "trained_tokens_per_s": 25.0, "forwarded_tokens_per_s": 200.0, "num_own_tokens": 400, "peak_memory_gb": 2.048,
        "update_tflop_per_s": 2.5, "update_mfu": 0.25, "step_tflop_per_s": 1.0, "step_mfu": 0.1,
    }  # fmt: skip
    assert clock.timings(100, 800) == wanted


def test_a_run_without_any_signal_goes_on(tmp_path) -> None:
    """No right answer anywhere: steps are counted and logged, nothing is trained, nothing crashes."""
    run = tmp_path / "run"
    words = ["reward.options.wrong_reward=0.0", "train.max_steps=2", f"run.dir={run}"]
    result = unmask("rl", write_recipe(tmp_path, "rl", RL), *words)
    assert result.returncode == 0, result.stderr
    steps = [r for r in read_metrics(run) if "reward_mean" in r]
    assert [r["num_updates"] for r in steps] == [0, 0]


def test_recomputed_logprobs_are_the_samplers(parts) -> None:
    model, tokenizer, source, reward = parts
    trainer = Trainer(model, OptimizerConfig(), max_optimizer_steps=1, max_tokens_per_micro_batch=200)
    groups = make_rollouts(Engine(model), tokenizer, [source[1]], PARAMS, reward, group_size=4)
    for rollout in groups[0].rollouts:
        rollout.advantage = 1.0
    rows = TraceRL(TraceRL.Options(), model.spec).rows(groups[0].rollouts, num_sequences=4)
    samplers = [row.values["old_logprobs"] for row in rows]
    set_logprobs("old_logprobs", rows, model, trainer, 1.0)
    for row, old in zip(rows, samplers, strict=True):
        assert row.values["old_logprobs"] is not old
        assert row.values["old_logprobs"] == pytest.approx(old, abs=1e-5)


@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_ratios_start_at_one_on_merged_views_too(parts, shrink) -> None:
    """Merged views are not the sampler's; before any update the ratio must still be 1 and nothing clipped."""
    model, tokenizer, source, reward = parts
    trainer = Trainer(model, OptimizerConfig(), max_optimizer_steps=1, max_tokens_per_micro_batch=200)
    rollouts = make_rollouts(Engine(model), tokenizer, [source[1]], PARAMS, reward, group_size=4)[0].rollouts
    for rollout in rollouts:
        rollout.advantage = 1.0
    objective = TraceRL(TraceRL.Options(trace_shrink=shrink), model.spec)
    assert objective.has_sampler_views == (shrink == 1)
    rows = objective.rows(rollouts, num_sequences=4)
    if shrink > 1:
        set_logprobs("old_logprobs", rows, model, trainer, 1.0)
    for pack in pack_rows(rows, 200):
        batch = collate(pack)
        stats = score_targets(model, batch, trainer.backend)
        torch.testing.assert_close(stats.logprobs_N.detach(), batch.values["old_logprobs"], atol=1e-5, rtol=0)
        assert objective.loss(stats, batch)[1]["clip_sum"] == 0


def test_the_loop_recomputes_for_merged_views(tmp_path) -> None:
    run = tmp_path / "run"
    words = ["objective.options.trace_shrink=4", "train.num_minibatches=1", "train.max_steps=2", f"run.dir={run}"]
    assert unmask("rl", write_recipe(tmp_path, "rl", RL), *words).returncode == 0
    steps = [r for r in read_metrics(run) if r.get("num_updates")]
    assert steps
    assert all(r["clip_share"] == 0 and abs(r["kl"]) < 1e-9 for r in steps)  # one update a step: still on policy


def test_evaluation_counts(parts) -> None:
    model, tokenizer, source, reward = parts
    result = evaluate(Engine(model), tokenizer, take_examples(source, 8), PARAMS, reward)
    traces = [g.rollouts[0].trace for g in result.groups]
    rewards = [g.rollouts[0].reward for g in result.groups]
    got = result.measured
    assert got["accuracy"] == got["reward_mean"] == pytest.approx(np.mean(rewards))
    assert got["standard_error"] == pytest.approx(np.std(rewards, ddof=1) / np.sqrt(8))
    assert got["tokens_per_forward"] == sum(t.num_response_tokens for t in traces) / sum(t.num_forwards for t in traces)
    assert got["num_forwards"] == np.mean([t.num_forwards for t in traces])
    assert got["cut_share"] == np.mean([t.finish_reason == "length" for t in traces])
    again = evaluate(Engine(model), tokenizer, take_examples(source, 8), PARAMS, reward)
    assert again.metrics() == result.metrics()


def test_rollouts_need_examples_that_can_be_scored(parts) -> None:
    model, tokenizer, source, reward = parts
    unanswered = source[0].model_copy(update={"answer": None})
    with pytest.raises(UnmaskError, match="example held_out-0: has no answer; the reward compares with one"):
        make_rollouts(Engine(model), tokenizer, [source[1], unanswered], PARAMS, reward)
    with pytest.raises(UnmaskError, match="none from index 5 on"):
        take_examples([source[0]], 3, first=5)


def test_a_copy_in_bfloat16_decodes(tmp_path, monkeypatch) -> None:
    """What it decodes is what the trainer, whose weights autocast rounds, thinks of it: with the weights of the step."""
    dtypes, publish = set(), Trainer.publish

    def spied(self, model) -> None:
        publish(self, model)
        assert model is not self.model
        for name, parameter in model.named_parameters():
            dtypes.add((name.split(".")[0], parameter.dtype))
            assert torch.equal(parameter, dict(self.model.named_parameters())[name].to(parameter.dtype))

    monkeypatch.setattr(Trainer, "publish", spied)
    run, recipe = tmp_path / "run", write_recipe(tmp_path, "rl", RL)
    words = ["run.precision=bfloat16", "train.max_steps=3", "train.old_logprobs=recompute", "advantage=none"]
    result = unmask("rl", recipe, *words, f"run.dir={run}")
    assert result.returncode == 0, result.stderr
    assert {("layers", torch.bfloat16), ("embed_tokens", torch.float32)} <= dtypes
    found = [r["mismatch_kl"] for r in read_metrics(run) if "mismatch_kl" in r]
    assert found
    assert max(found) < 1e-3

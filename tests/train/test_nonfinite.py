"""Updates whose loss or gradient is not finite: skipped, counted, and after some of them the end, with the samples at fault."""

from __future__ import annotations

import copy
import json
import math
import re

import numpy as np
import pytest
import torch

from tests.recipes import RL, SFT, unmask, write_recipe
from tests.train.in_need import NAN, made, spoiled
from unmask.errors import UnmaskError
from unmask.evaluate import Evaluation
from unmask.metrics import read_metrics
from unmask.objectives.ar import Autoregressive
from unmask.objectives.masked_sft import MaskedSft
from unmask.objectives.policy import PolicyObjective
from unmask.objectives.rows import fit_rows, score_targets
from unmask.objectives.trace_sft import TraceSft
from unmask.rl import critic
from unmask.train.checkpoint import list_checkpoints
from unmask.types import Demonstration


def test_a_skipped_update_leaves_no_trace() -> None:
    """Then the run goes on as if there had been none: weights, optimizer, learning rate, bit for bit."""
    (trainer, rows, loss_fn, said, _), (other, _, other_loss, *_) = made(), made()
    trainer.update(rows, loss_fn)
    before = copy.deepcopy(trainer.optimizer.state_dict()["state"])
    skipped = trainer.update(spoiled(rows, 2), loss_fn)
    assert skipped == {"num_tokens": skipped["num_tokens"], "num_nonfinite_updates": 1}
    assert said == [
        "model, update 2: skipped; loss nan or gradient norm nan is not finite (1 in a row; train.max_nonfinite_updates is 3)"
    ]
    after = trainer.optimizer.state_dict()["state"]
    assert all(torch.equal(after[i][key], before[i][key]) for i in before for key in before[i])
    assert all(p.grad is None for p in trainer.model.parameters())
    stats = trainer.update(rows, loss_fn)
    other.update(rows, other_loss)
    assert stats == other.update(rows, other_loss)
    assert stats["num_nonfinite_updates"] == 0
    assert trainer.optimizer_step == 2
    assert all(torch.equal(p, q) for p, q in zip(trainer.model.parameters(), other.model.parameters(), strict=True))


def test_so_many_in_a_row_and_no_more() -> None:
    trainer, rows, loss_fn, said, reports = made(max_nonfinite_updates=2)
    for _ in range(3):  # a good one begins the count again
        trainer.update(spoiled(rows, 0), loss_fn)
        trainer.update(spoiled(rows, 0), loss_fn)
        trainer.update(rows, loss_fn)
    trainer.update(spoiled(rows, 0), loss_fn)
    state = copy.deepcopy(trainer.state_dict())
    trainer.update(spoiled(rows, 0), loss_fn)
    with pytest.raises(UnmaskError):
        trainer.update(spoiled(rows, 0), loss_fn)
    assert (len(said), len(reports)) == (8, 1)
    resumed, _, loss_fn, said, reports = made(max_nonfinite_updates=2)
    resumed.load_state_dict(state)
    resumed.update(spoiled(rows, 0), loss_fn)
    with pytest.raises(UnmaskError):
        resumed.update(spoiled(rows, 0), loss_fn)
    assert (len(said), len(reports)) == (1, 1)


@pytest.mark.parametrize("max_tokens", [1, 60, 10**6])
def test_the_samples_at_fault_are_named(max_tokens) -> None:
    """Whatever they are packed with, and in however many pieces."""
    trainer, rows, loss_fn, _, reports = made(0, max_tokens)
    weights = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(UnmaskError) as error:
        trainer.update(spoiled(rows, 1, 4), loss_fn)
    assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
    [report] = reports
    assert report["samples"] == [{"id": f"sample {i}", "loss": "nan", "grad_norm": "nan"} for i in (1, 4)]
    assert (report["num_samples"], report["is_any_sample_nonfinite"], report["loss"]) == (6, True, "nan")
    assert str(error.value).startswith("FILE: model: an update with loss nan and gradient norm nan, number 1 in a row ")
    assert "2 of its 6 samples are at fault: sample 1, sample 4. The last checkpoint is intact" in str(error.value)


def test_a_gradient_alone_is_reason_enough() -> None:
    """sqrt(0) is finite, its slope is not."""
    trainer, rows, loss_fn, _, reports = made(0)
    for i, row in enumerate(rows):
        row.values["is_bad"] = np.full(len(row.target_ids), i == 3)

    def with_a_root(batch):
        loss, sums = loss_fn(batch)
        logprobs_N = score_targets(trainer.model, batch, trainer.backend).logprobs_N
        return loss + (logprobs_N[batch.values["is_bad"] > 0] * 0).sqrt().sum(), sums

    with pytest.raises(UnmaskError, match=r"an update with loss \d.* and gradient norm nan.*: sample 3\. "):
        trainer.update(rows, with_a_root)
    assert [(s["id"], s["grad_norm"]) for s in reports[0]["samples"]] == [("sample 3", "nan")]
    assert math.isfinite(reports[0]["samples"][0]["loss"])


def test_if_none_is_at_fault_by_itself_all_are_listed() -> None:
    """With the losses and gradients that each has: as of an update of it alone."""
    trainer, rows, loss_fn, _, reports = made(0)
    with pytest.raises(UnmaskError, match="none of its 6 samples is at fault by itself: sample 0, sample 1, sample 2, "):
        trainer.update(rows, lambda b: (loss_fn(b)[0] / (int(b.layout.doc_BL.max()) == 0), {}))
    assert reports[0]["is_any_sample_nonfinite"] is False
    for number, found in enumerate(reports[0]["samples"]):
        alone, _, loss_alone, *_ = made()
        stats = alone.update([rows[number]], loss_alone)
        assert (found["id"], found["loss"]) == (f"sample {number}", pytest.approx(stats["loss"], rel=1e-6))
        assert found["grad_norm"] == pytest.approx(stats["grad_norm"], rel=1e-5)


def test_rows_know_their_sample(model) -> None:
    items = [
        Demonstration(i, 0, [5, 6, 7], [8, 9, 10, 11, 12], step_map=[0, 1, 2, 3, 4], name=f"example {i}") for i in range(3)
    ]
    for objective in (
        *(kind(kind.Options(), model.spec, 0) for kind in MaskedSft.__subclasses__() if "Options" in vars(kind)),
        Autoregressive(Autoregressive.Options(), model.spec, 0),
        TraceSft(TraceSft.Options(), model.spec, 0),
    ):
        rows = objective.rows(items)
        for pieces in (rows, fit_rows(rows, 4)):
            assert {row.sample for row in pieces} == {item.name for item in items}, type(objective)


def of_call(monkeypatch, home, name: str, numbers: range, spoil) -> None:
    """Spoils what a function or method returns, in these of its calls."""
    original, calls = getattr(home, name), []

    def spoiling(*arguments, **options):
        result = original(*arguments, **options)
        calls.append(None)
        return spoil(result) if len(calls) in numbers else result

    monkeypatch.setattr(home, name, spoiling)


def spoil_rows(rows):
    rows[1].values["weight"] = rows[1].values["weight"] * NAN
    return rows


def test_a_run_skips_and_counts_then_stops_and_is_resumed(tmp_path, monkeypatch) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    words = ["sft", recipe, f"run.dir={run}", "eval.every_steps=0"]
    with monkeypatch.context() as patch:
        # The first call of `rows` is the look at the data before the run. Step 1 is bad, 2 good, 3 to 6 are bad.
        of_call(patch, MaskedSft, "rows", range(2, 3), spoil_rows)
        of_call(patch, MaskedSft, "rows", range(4, 9), spoil_rows)
        result = unmask(*words)
    assert result.returncode == 2
    assert result.stderr.count("skipped; loss nan or gradient norm nan is not finite") == 4
    file = run / "nonfinite-step-00000006.json"
    assert result.stderr.splitlines()[-1].startswith(f"error: {file}: model: an update with loss nan")
    report = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert (report["step"], report["optimizer_step"], len(report["samples"])) == (6, 1, 1)
    assert report["samples"][0]["id"] in result.stderr.splitlines()[-1]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [record["num_nonfinite_updates"] for record in records] == [1, 0, 1, 1, 1]
    assert ["loss" in record for record in records] == [False, True, False, False, False]
    assert list_checkpoints(run / "checkpoints")[-1].name == "step-00000004"
    with monkeypatch.context() as patch:  # two in a row are in the checkpoint, step 5 is the third
        of_call(patch, MaskedSft, "rows", range(2, 9), spoil_rows)
        again = unmask(*words, "--resume")
    assert again.returncode == 2
    assert again.stderr.splitlines()[-1] == result.stderr.splitlines()[-1]
    assert (run / "metrics.jsonl").read_text().splitlines() == lines
    with monkeypatch.context() as patch:  # the limit may be raised for what is left
        of_call(patch, MaskedSft, "rows", range(2, 9), spoil_rows)
        result = unmask(*words, "train.max_nonfinite_updates=4", "--resume")
    assert result.returncode == 0, result.stderr
    assert [record["num_nonfinite_updates"] for record in read_metrics(run)] == [1, 0, 1, 1, 1, 1]


def test_responses_are_named(tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    of_call(monkeypatch, PolicyObjective, "rows", range(1, 2), spoil_rows)
    words = ["train.max_nonfinite_updates=0", "eval.every_steps=0", "train.num_minibatches=1", f"run.dir={run}"]
    result = unmask("rl", write_recipe(tmp_path, "rl", RL), *words)
    assert result.returncode == 2
    [sample] = json.loads((run / "nonfinite-step-00000001.json").read_text())["samples"]
    example, member = sample["id"].split("#")
    assert re.fullmatch(r"train-\d+", example)
    assert 0 <= int(member) < 4
    assert f"1 of its {json.loads((run / 'nonfinite-step-00000001.json').read_text())['num_samples']} samples" in result.stderr


def test_so_is_the_value_model(tmp_path, monkeypatch) -> None:
    """Its bad updates do not touch the policy's."""
    run = tmp_path / "run"
    of_call(monkeypatch, critic, "value_loss", range(1, 2), lambda result: (result[0] * NAN, result[1]))
    words = ["value.enabled=true", "eval.every_steps=0", "value.num_minibatches=2", "train.max_steps=2", f"run.dir={run}"]
    result = unmask("rl", write_recipe(tmp_path, "rl", RL), *words)
    assert result.returncode == 0, result.stderr
    assert "value model, update 1: skipped; loss nan" in result.stderr
    first, second = read_metrics(run)
    assert (first["num_nonfinite_value_updates"], second["num_nonfinite_value_updates"]) == (1, 0)
    assert first["num_nonfinite_updates"] == 0
    assert first["value_loss"] > 0
    assert first["num_updates"] == 2
    of_call(monkeypatch, critic, "value_loss", range(1, 99), lambda result: (result[0] * NAN, result[1]))
    result = unmask("rl", write_recipe(tmp_path, "rl", RL), *words[:-1], f"run.dir={tmp_path / 'other'}")
    assert result.returncode == 2
    report = json.loads((tmp_path / "other" / "nonfinite-step-00000002.json").read_text())
    assert report["model"] == "value model"
    assert all("#" in sample["id"] for sample in report["samples"])


def test_what_is_measured_may_be_no_number(tmp_path, monkeypatch) -> None:
    """It is said, and the records stay JSON."""
    run = tmp_path / "run"
    of_call(monkeypatch, Evaluation, "metrics", range(1, 9), lambda found: {**found, "cut_share": NAN})
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), f"run.dir={run}")
    assert result.returncode == 0, result.stderr
    assert "step 3: not recorded: eval/cut_share nan" in result.stderr
    records = [json.loads(line, parse_constant=pytest.fail) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "eval/accuracy" in r] == [3, 6]

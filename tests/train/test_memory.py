"""Out of memory: packs become smaller and nothing else changes. Memory is simulated, but for the allocator's own error."""

from __future__ import annotations

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch

from tests.recipes import RL, unmask, write_recipe
from tests.train.in_need import limited, made
from tests.train.test_ranks import TORCHRUN, python
from unmask.dist import ALONE
from unmask.errors import TryAgainError, UnmaskError
from unmask.metrics import read_metrics
from unmask.objectives.rows import fit_rows, score_targets
from unmask.train import trainer as trainer_module
from unmask.train.memory import PackSizes


def same_weights(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_an_update_with_less_memory_is_one_with_smaller_packs() -> None:
    """Bit for bit that of a trainer which had them from the beginning; and the next update does not try again."""
    (trainer, rows, loss_fn, said, _), (other, _, other_loss, *_) = made(max_tokens=200), made(max_tokens=50)
    assert max(len(row.input_ids) for row in rows) > 50  # they are split, too
    sizes: list[int] = []
    for _ in range(2):
        stats = trainer.update(rows, limited(loss_fn, 60, sizes))
        assert stats == other.update(rows, other_loss)
    assert same_weights(trainer, other)
    assert said == [
        "model: out of memory with packs of 200 tokens; going on with 100",
        "model: out of memory with packs of 100 tokens; going on with 50",
    ]
    assert trainer.max_tokens == 50
    assert sum(size > 60 for size in sizes) == 2


def test_a_backward_pass_that_fails_leaves_no_gradients() -> None:
    """The first pack's are there when the second one's fails."""
    (trainer, rows, loss_fn, said, _), (other, _, other_loss, *_) = made(max_tokens=100), made(max_tokens=50)
    calls = []

    def failing_backward(batch):
        loss, sums = loss_fn(batch)
        calls.append(batch)
        if len(calls) == 2:
            loss.register_hook(lambda gradient: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory.")))
        return loss, sums

    trainer.say = lambda line: said.append([p.grad for p in trainer.model.parameters() if p.grad is not None])
    assert trainer.update(rows, failing_backward) == other.update(rows, other_loss)
    assert same_weights(trainer, other)
    assert said == [[]]  # given back before it begins again


def test_the_end_is_a_row_by_itself() -> None:
    trainer, rows, loss_fn, said, _ = made(max_tokens=200)
    with pytest.raises(UnmaskError, match="out of memory, although every row is forwarded by itself") as error:
        trainer.update(rows, limited(loss_fn, 0))
    assert [int(line.split()[-1]) for line in said] == [100, 50, 25]
    longest = max(len(piece.input_ids) for piece in fit_rows(rows, 25))
    assert longest > 25
    assert f"the longest has {longest} tokens" in str(error.value)
    assert "train.use_activation_checkpointing" in str(error.value)


def test_the_allocator_of_cpus_is_understood() -> None:
    trainer, rows, loss_fn, said, _ = made(max_tokens=200)
    too_much = [2**50, 0]
    stats = trainer.update(rows, lambda batch: (torch.empty(too_much.pop(0) if too_much else 0), loss_fn(batch))[1])
    assert stats["loss"] > 0
    assert said == ["model: out of memory with packs of 200 tokens; going on with 100"]


def test_other_errors_stay_what_they_are() -> None:
    trainer, rows, loss_fn, said, _ = made()
    with pytest.raises(RuntimeError, match="must match the size of tensor b"):
        trainer.update(rows, lambda batch: (torch.zeros(2) + torch.zeros(3), loss_fn(batch))[1])
    assert said == []


def test_ranks_that_share_weights_end_and_their_launcher_is_told(tmp_path) -> None:
    """The others are within a collective then. What the packs were halved to holds for the next start, and for its recipe."""
    trainer, rows, loss_fn, said, _ = made(max_tokens=200)
    trainer.is_sharded = True
    sizes = PackSizes(tmp_path, 200)
    sizes.keep("value model", 50)
    trainer.keep_max_tokens = partial(sizes.keep, "model")
    message = r"model: out of memory with packs of 200 tokens, on ranks that share the weights; --resume goes on with .* 100$"
    with pytest.raises(TryAgainError, match=message):
        trainer.update(rows, limited(loss_fn, 100))
    assert said == []
    for recipe, wanted in ((200, 100), (400, 400)):
        again, *_ = made(max_tokens=recipe)
        told = PackSizes(tmp_path, recipe).restore([again], ALONE)
        assert (again.max_tokens, len(told)) == (wanted, 2 * (recipe == 200))
    for content in ("[]", "null", "{", '{"recipe": 200, "model": null}', '{"recipe": 200, "model": 0}'):
        (tmp_path / "max-tokens.json").write_text(content)
        assert PackSizes(tmp_path, 200).restore([again], ALONE) == []
    trainer.max_tokens = 10
    with pytest.raises(UnmaskError, match="although every row is forwarded by itself"):
        trainer.update(rows, limited(loss_fn, 0))


def test_measures_and_values_too() -> None:
    """Of rows that are cut into pieces half-way, every target gets the value that it has in the whole row."""
    (trainer, rows, loss_fn, said, _), (other, others, other_loss, *_) = made(max_tokens=200), made()
    assert trainer.measure(rows, limited(loss_fn, 60)) == pytest.approx(other.measure(others, other_loss), rel=1e-6)
    assert len(said) == 2
    trainer.max_tokens = 200

    def logprobs(batch):
        return score_targets(trainer.model, batch, trainer.backend).logprobs_N

    trainer.set_values("logprobs", rows, limited(logprobs, 60))
    other.set_values("logprobs", others, lambda batch: score_targets(other.model, batch, other.backend).logprobs_N)
    assert len(said) == 4
    assert len(fit_rows(rows, 50)) > len(rows)
    for row, wanted in zip(rows, others, strict=True):
        np.testing.assert_allclose(row.values["logprobs"], wanted.values["logprobs"], atol=1e-5)


def test_a_run_goes_on(tmp_path, monkeypatch) -> None:
    """RL with a value model: losses, rewards and gradients of a run with enough memory, to rounding."""
    recipe = write_recipe(tmp_path, "rl", RL)
    words = ["rl", recipe, "train.max_steps=3", "value.enabled=true", "train.old_logprobs=recompute", "optimizer.lr=1e-4"]
    words += ["train.max_tokens_per_micro_batch=512", "train.num_minibatches=1"]
    assert unmask(*words, f"run.dir={tmp_path / 'enough'}").returncode == 0
    collate = trainer_module.collate

    def on_small_device(rows, device):
        batch = collate(rows, device)
        if batch.input_ids_BL.numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch

    monkeypatch.setattr(trainer_module, "collate", on_small_device)
    result = unmask(*words, f"run.dir={tmp_path / 'little'}")
    assert result.returncode == 0, result.stderr
    for name in ("model", "value model"):
        assert f"{name}: out of memory with packs of 512 tokens; going on with 256" in result.stderr.splitlines()
    for a, b in zip(*(read_metrics(tmp_path / name) for name in ("enough", "little")), strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"num_forwarded_tokens"}:
            assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-5), key
    result = unmask(*words, f"run.dir={tmp_path / 'little'}", "train.max_steps=4", "--resume")
    assert result.returncode == 0, result.stderr
    assert "out of memory" not in result.stderr  # it is not tried again


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="as the other tests with ranks")
def test_ranks_go_on_together(tmp_path) -> None:
    """Of two, one has too little memory; then all updates are bad, and both find the samples at fault, and one writes."""
    result = python(*TORCHRUN, "-m", "tests.train.in_need", tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["said"][:2] == [
        "model: out of memory with packs of 200 tokens; going on with 100",
        "model: out of memory with packs of 100 tokens; going on with 50",
    ]
    alone, rows, loss_fn, *_ = made(max_tokens=50)
    alone.set_values("logprobs", rows, lambda batch: score_targets(alone.model, batch, alone.backend).logprobs_N)
    for row, values in zip(rows, first["values"], strict=True):  # whose pieces were on both ranks
        np.testing.assert_allclose(values, row.values["logprobs"], atol=1e-5)
    stats = alone.update(rows, loss_fn)
    for key in ("loss", "grad_norm"):
        assert first["stats"][key] == pytest.approx(stats[key], rel=1e-5)
    assert first["bad"] == {"num_tokens": first["stats"]["num_tokens"], "num_nonfinite_updates": 1}
    assert [sample["id"] for sample in first["report"]["samples"]] == ["sample 1", "sample 4"]
    assert "2 of its 6 samples are at fault: sample 1, sample 4" in first["error"]

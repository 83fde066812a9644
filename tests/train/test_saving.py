"""Checkpoints written beside the training: of the moment they were asked for, whole or not there, errors not lost."""

from __future__ import annotations

import errno
import json
import pickle
import threading
from pathlib import Path

import pytest
import torch

from tests.recipes import RL, unmask, write_recipe
from tests.train.test_trainer import make_trainer, step
from unmask.dist import ALONE
from unmask.errors import UnmaskError
from unmask.train import saving
from unmask.train.checkpoint import find_damage, list_checkpoints, load_checkpoint, rng_state
from unmask.train.saving import CheckpointWriter
from unmask.train.trainer import Trainer


@pytest.fixture
def tokenizer_files(tmp_path) -> Path:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    return tmp_path / "tokenizer"


def trained() -> tuple[Trainer, object]:
    trainer, objective = make_trainer()
    step(trainer, objective)
    return trainer, objective


def state_of(trainer: Trainer) -> dict:
    return {"trainers": {"": trainer.state_dict()}, "rng": [rng_state()]}


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    found = dict(trainer.model.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        found |= {f"{name}/{key}": value for key, value in trainer.optimizer.state[parameter].items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def test_it_is_of_the_moment_of_the_call(tmp_path, tokenizer_files, monkeypatch) -> None:
    """The training goes on while the checkpoint is written, and changes weights and optimizer in place."""
    trainer, objective = trained()
    may_write = threading.Event()
    write = saving.write_weights
    monkeypatch.setattr(saving, "write_weights", lambda *words, **more: may_write.wait(60) and write(*words, **more))
    writer = CheckpointWriter(tmp_path / "checkpoints", {"": trainer}, tokenizer_files, ALONE, keep_last=2)
    then = everything(trainer)
    size = trainer.model.config["block_size"]
    writer.save(1, state_of(trainer))
    step(trainer, objective)
    trainer.model.set_block_size(2 * size)
    assert not list_checkpoints(tmp_path / "checkpoints")
    may_write.set()
    writer.wait()
    [checkpoint] = list_checkpoints(tmp_path / "checkpoints")
    assert find_damage(checkpoint) is None
    other, _ = make_trainer()
    load_checkpoint(checkpoint, {"": other}, ALONE)
    now = everything(other)
    assert then.keys() == now.keys()
    assert all(torch.equal(then[name], now[name]) for name in then)
    assert not all(torch.equal(then[name], tensor) for name, tensor in everything(trainer).items())
    assert other.optimizer_step == 1
    assert json.loads((checkpoint / "config.json").read_text())["block_size"] == size


def test_what_goes_wrong_is_raised_by_the_next_call_and_leaves_nothing(tmp_path, tokenizer_files, monkeypatch) -> None:
    trainer, _ = trained()
    writer = CheckpointWriter(tmp_path / "checkpoints", {"": trainer}, tokenizer_files, ALONE, keep_last=2)
    writer.save(1, state_of(trainer))

    def full(*words, **more) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    writer.wait()
    monkeypatch.setattr(saving, "carry_files", full)
    writer.save(2, state_of(trainer))
    with pytest.raises(UnmaskError, match="the disk is full"):
        writer.save(3, state_of(trainer))
    writer.check()  # said once
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_disk_that_is_full_at_the_optimizer_is_one_line(tmp_path, tokenizer_files, monkeypatch) -> None:
    """Which torch reports as an exception of its own kind, which is no `Exception`."""
    from torch.distributed.checkpoint import filesystem

    def full(*words, **more) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    trainer, _ = trained()
    writer = CheckpointWriter(tmp_path / "checkpoints", {"": trainer}, tokenizer_files, ALONE, keep_last=2)
    monkeypatch.setattr(filesystem, "_write_item", full)
    writer.save(1, state_of(trainer))
    with pytest.raises(UnmaskError, match="the disk is full"):
        writer.wait()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_only_some_are_kept_and_the_best_is_told_before_others_go(tmp_path, tokenizer_files) -> None:
    trainer, _ = trained()
    folder = tmp_path / "checkpoints"
    writer = CheckpointWriter(folder, {"": trainer}, tokenizer_files, ALONE, keep_last=2, is_asynchronous=False)
    there: list[list[str]] = []
    for number in range(1, 6):
        best = 2 if number < 5 else 5
        writer.save(
            number, state_of(trainer), best, on_written=lambda: there.append(sorted(p.name[-1] for p in folder.iterdir()))
        )
    assert there == [["1"], ["1", "2"], ["1", "2", "3"], ["2", "3", "4"], ["2", "3", "4", "5"]]
    assert names(folder) == ["4", "5"]


def names(folder: Path) -> list[str]:
    return sorted(path.name[-1] for path in folder.iterdir())


def test_a_run_is_the_same_with_both(tmp_path) -> None:
    recipe = write_recipe(tmp_path, "rl", RL)
    for name in ("true", "false"):
        words = [f"checkpoint.is_asynchronous={name}", f"run.dir={tmp_path / name}", "train.max_steps=4", "value.enabled=true"]
        assert unmask("rl", recipe, *words).returncode == 0
    a, b = (files(tmp_path / name) for name in ("true", "false"))
    assert a.keys() == b.keys()
    same = {name for name in a if name.endswith(("metrics.jsonl", ".safetensors", ".distcp"))}
    assert len(same) == 1 + 2 * 3  # of two checkpoints, both models and what optimizers keep
    assert all(a[name] == b[name] for name in same)


def files(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


class Harm:
    """Unpickled, it would call this."""

    def __reduce__(self):
        return (print, ("harm",))


def test_the_index_of_optimizer_tensors_is_read_as_data(tmp_path, tokenizer_files, capsys) -> None:
    trainer, _ = trained()
    writer = CheckpointWriter(tmp_path / "checkpoints", {"": trainer}, tokenizer_files, ALONE, keep_last=2)
    writer.save(1, state_of(trainer))
    writer.wait()
    index = tmp_path / "checkpoints" / "step-00000001" / "optimizer" / ".metadata"
    for content, reason in (
        (pickle.dumps(Harm()), "builtins.print is no data"),
        (b"\x80\x04x", "not the index"),
        (b"", "not the"),
    ):
        index.write_bytes(content)
        with pytest.raises(UnmaskError, match=reason):
            load_checkpoint(index.parent.parent, {"": make_trainer()[0]}, ALONE)
    assert capsys.readouterr().out == ""

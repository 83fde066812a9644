"""Disks that are too small: found before a checkpoint is begun, said in one line, and the run goes on from the last one."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.recipes import RL, SFT, unmask, write_recipe
from tests.train.test_durability import assert_same_end
from unmask import metrics
from unmask.train import disk_space, saving
from unmask.train.checkpoint import find_damage, list_checkpoints


@pytest.mark.parametrize(
    ("text", "words"),
    [(SFT, []), (SFT, ["lora.rank=8"]), (SFT, ["model.preset=sdar_moe/tiny"]), (RL, ["value.enabled=true"])],
    ids=["sft", "adapters", "experts", "value model"],
)
def test_the_estimate_is_what_a_checkpoint_takes(tmp_path, monkeypatch, text, words) -> None:
    if "lora.rank=8" in words:
        pytest.importorskip("peft", reason="the extra `lora` is not installed")
    estimates = []
    check = saving.check_space

    def checking(checkpoint, trainers, tokenizer_from):
        estimates.append(disk_space.estimate_bytes(trainers, tokenizer_from))
        check(checkpoint, trainers, tokenizer_from)

    monkeypatch.setattr(saving, "check_space", checking)
    kind = "sft" if text is SFT else "rl"
    words = [*words, "train.max_steps=2", "eval.every_steps=0", f"run.dir={tmp_path / 'run'}"]
    result = unmask(kind, write_recipe(tmp_path, kind, text), *words)
    assert result.returncode == 0, result.stderr
    [checkpoint] = list_checkpoints(tmp_path / "run" / "checkpoints")
    taken = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
    assert taken <= estimates[-1] <= 1.01 * taken + 2**20


def uninterrupted(folder: Path) -> Path:
    assert unmask("sft", folder / "sft.toml", f"run.dir={folder / 'whole'}").returncode == 0
    return folder / "whole"


def one_line(result) -> str:
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_a_checkpoint_that_would_not_fit_is_not_begun(tmp_path, monkeypatch) -> None:
    recipe, folder = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    usage, asked = shutil.disk_usage(tmp_path), []

    def nearly_full(path):
        asked.append(path)
        return usage._replace(free=10**9 if len(asked) == 1 else 3_000_000)

    with monkeypatch.context() as patch:
        patch.setattr(disk_space.shutil, "disk_usage", nearly_full)
        write = saving.write_weights
        patch.setattr(saving, "write_weights", lambda *a, **more: (assert_first(asked), write(*a, **more)))
        line = one_line(unmask("sft", recipe, f"run.dir={folder}"))
    assert asked == [folder / "checkpoints"] * 2
    assert f"{folder}/checkpoints/step-00000004: the disk is full: a checkpoint needs 0.00" in line
    assert " GB, free are 0.003 GB; nothing was written, and older checkpoints are intact; free space and go on" in line
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    assert find_damage(folder / "checkpoints" / "step-00000002") is None
    assert unmask("sft", recipe, f"run.dir={folder}", "--resume").returncode == 0
    assert_same_end(uninterrupted(tmp_path), folder)


def assert_first(asked: list) -> None:
    assert len(asked) == 1, "a checkpoint was begun that does not fit"


@pytest.mark.parametrize("name", ["metrics.jsonl", "timings.jsonl"])
def test_a_record_that_does_not_fit_leaves_no_half_of_it(tmp_path, monkeypatch, name) -> None:
    """The disk takes a part of step 3's line, and no more."""
    recipe, folder = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    write = os.write

    def nearly_full(descriptor, data):
        if is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if data.startswith(b'{"step": 3') and os.path.samestat(os.fstat(descriptor), os.stat(folder / name)):
            is_full.append(True)
            return write(descriptor, data[:9])
        return write(descriptor, data)

    is_full: list[bool] = []
    with monkeypatch.context() as patch:
        patch.setattr(metrics.os, "write", nearly_full)
        line = one_line(unmask("sft", recipe, f"run.dir={folder}"))
    assert line == f"error: {folder / name}: the disk is full (nothing half-written was left); free space and run again"
    assert all((folder / file).read_bytes().endswith(b"}\n") for file in ("metrics.jsonl", "timings.jsonl"))
    assert unmask("sft", recipe, f"run.dir={folder}", "--resume").returncode == 0
    assert_same_end(uninterrupted(tmp_path), folder)


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 3 MB (a checkpoint takes 5)."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(mount)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_disk_full_while_saving(tiny_disk, tmp_path) -> None:
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), f"run.dir={tiny_disk / 'run'}")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert "step-00000002: the disk is full" in result.stderr
    assert "Traceback" not in result.stderr
    assert list((tiny_disk / "run" / "checkpoints").iterdir()) == []  # not even a temporary folder


def test_disk_full_while_logging(tiny_disk, tmp_path) -> None:
    filler = tiny_disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        all(file.write(b"x" * 4096) for _ in range(2000))
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), f"run.dir={tiny_disk / 'run'}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "the disk is full" in result.stderr


def test_on_a_disk_that_is_full_indeed(tiny_disk, tmp_path) -> None:
    """With room for one checkpoint: the second one is not begun, a resumption says so, and goes on when there is room."""
    size = ["mount", "-o", "remount,size=7m", str(tiny_disk)]
    assert os.spawnvp(os.P_WAIT, size[0], size) == 0
    recipe, folder = write_recipe(tmp_path, "sft", SFT), tiny_disk / "run"
    assert "step-00000004: the disk is full: a checkpoint needs" in one_line(unmask("sft", recipe, f"run.dir={folder}"))
    filler = tiny_disk / "filler"
    with open(filler, "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        all(file.write(b"x" * 4096) for _ in range(3000))
    assert "the disk is full" in one_line(unmask("sft", recipe, f"run.dir={folder}", "--resume"))
    filler.unlink()
    size[2] = "remount,size=30m"
    assert os.spawnvp(os.P_WAIT, size[0], size) == 0
    assert unmask("sft", recipe, f"run.dir={folder}", "--resume").returncode == 0
    assert_same_end(uninterrupted(tmp_path), folder)

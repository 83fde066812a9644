"""The log of a rank: what is in it, what survives, and what becomes of it where it cannot be written."""

from __future__ import annotations

import json
import logging
import warnings
from datetime import datetime
from pathlib import Path

import pytest
import torch

from tests.recipes import SFT, unmask, write_recipe
from unmask.dist import ALONE
from unmask.errors import UnmaskError
from unmask.metrics import JsonlWriter
from unmask.train.logs import fields, rank_log
from unmask.train.trainer import Trainer


def lines(folder: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (folder / "logs" / f"rank-{rank}.jsonl").read_text().splitlines()]


def test_a_run_tells_what_it_does(tmp_path, monkeypatch) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    update, calls = Trainer.update, []

    def dying(self, *words):
        calls.append(1)
        if len(calls) == 4:
            raise RuntimeError("boom")
        return update(self, *words)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", dying)
        with pytest.raises(RuntimeError, match="boom"):
            unmask("sft", recipe, f"run.dir={run}")
    first = lines(run)
    assert [line["message"] for line in first] == [
        "start", "step", "step", "checkpoint", "evaluation", "step", "RuntimeError: boom",
    ]  # fmt: skip
    assert {"unmask", "host", "pid", "device", "rank", "num_ranks", "recipe"} <= first[0].keys()
    assert (first[1]["step"], first[1]["level"]) == (1, "info")
    assert {"loss", "update_s", "update_tflop_per_s"} <= first[1].keys()
    assert (first[-1]["level"], "in dying" in first[-1]["traceback"]) == ("error", True)
    assert all(datetime.fromisoformat(line["time"]).utcoffset() is not None for line in first)
    assert first[0]["time"][-10:-6].startswith(".")  # milliseconds
    assert unmask("sft", recipe, f"run.dir={run}", "--resume").returncode == 0
    again = lines(run)
    assert again[: len(first)] == first
    rest = [line["message"] for line in again[len(first) :]]
    assert rest[:3] == ["start", f"resuming after step 2 from {run}/checkpoints/step-00000002", "evaluation"]
    assert (rest[-1], again[-1]["reason"]) == ("end", "max_steps")


def test_a_folder_of_another_run_is_left_alone(tmp_path) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    run.mkdir()
    (run / "mine").write_text("")
    assert unmask("sft", recipe, f"run.dir={run}").returncode == 2
    assert [path.name for path in run.iterdir()] == ["mine"]


def test_a_log_that_cannot_be_written_is_one_line(tmp_path) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    (run / "logs" / "rank-0.jsonl").mkdir(parents=True)  # in the way
    done = unmask("sft", recipe, f"run.dir={run}")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "rank-0.jsonl: Is a directory" in done.stderr
    (run / "logs" / "rank-0.jsonl").rmdir()
    assert unmask("sft", recipe, f"run.dir={run}", "train.max_steps=1").returncode == 0  # a log is nothing to lose


def test_what_is_said_before_the_folder_is_known_comes_too(tmp_path) -> None:
    logger, seen = logging.getLogger("unmask.somewhere"), []
    before = logging.getLogger("unmask").level, warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda *words, **more: seen.append(words)
        shown = warnings.showwarning
        with rank_log() as log:
            logger.warning("early", extra=fields(step=3))
            warnings.warn("careful", UserWarning, stacklevel=1)
            log.open(tmp_path, ALONE, torch.device("cpu"))
            logger.info("late")
        assert warnings.showwarning is shown
    found = lines(tmp_path)
    assert [line["message"] for line in found] == ["start", "early", "UserWarning: careful", "late"]
    assert (found[1]["step"], found[1]["level"], "test_logs.py:" in found[2]["where"]) == (3, "warning", True)
    assert len(seen) == 1  # and shown as ever
    assert (logging.getLogger("unmask").level, warnings.showwarning) == before
    logger.info("after")
    assert len(lines(tmp_path)) == 4


def test_a_full_disk_is_an_error_and_does_not_hide_another(tmp_path, monkeypatch) -> None:
    def full(self, record):
        raise UnmaskError("the disk is full")

    def fail() -> None:
        with rank_log() as log:
            log.open(tmp_path, ALONE, torch.device("cpu"))
            monkeypatch.setattr(JsonlWriter, "write", full)
            with pytest.raises(UnmaskError, match="the disk is full"):
                logging.getLogger("unmask").info("hello")
            raise ValueError("the error")

    with pytest.raises(ValueError, match="the error"):
        fail()

"""TensorBoard and W&B beside the JSON lines: the same records, each once, also when a run is killed and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path

import pytest

from tests.recipes import SFT, unmask, write_recipe
from unmask.metrics import read_metrics
from unmask.train.progress import Progress
from unmask.train.saving import CheckpointWriter
from unmask.train.sinks import TensorBoardSink

BOARD, PROJECT = "log.tensorboard=true", "log.wandb_project=demo"


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def killed_after(step: int, *words: object) -> None:
    """A run that dies after it recorded this step, before a checkpoint of it; the sinks are not closed in good order."""
    original = Progress.show

    def dying(self, num_steps, numbers):
        original(self, num_steps, numbers)
        if num_steps == step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Progress, "show", dying)
        patch.setattr(TensorBoardSink, "close", lambda self, is_failed: None)
        with pytest.raises(Killed):
            unmask(*words)


def recorded(folder: Path) -> dict[tuple[str, int], float]:
    """(name, step) -> value of both files."""
    lines = [*read_metrics(folder), *map(json.loads, (folder / "timings.jsonl").read_text().splitlines())]
    return {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}


def on_the_board(folder: Path) -> dict[tuple[str, int], float]:
    """What TensorBoard shows; fails where it has a value twice."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    points = [(name, e.step, e.value) for name in events.Tags()["scalars"] for e in events.Scalars(name)]
    assert max(Counter((name, step) for name, step, _ in points).values()) == 1
    return {(name, step): value for name, step, value in points}


def test_tensorboard_has_every_record_once(tmp_path) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    killed_after(5, "sft", recipe, f"run.dir={run}", BOARD)
    assert read_metrics(run)[-1]["step"] == 5  # a step after the checkpoint was recorded
    assert {step for _, step in on_the_board(run)} >= {1, 2, 3, 4}  # what the checkpoint knows outlives the process
    stale = TensorBoardSink(run / "tensorboard", None)  # and so may what it does not know
    stale.write(5, {"loss": 99.0})
    stale.close(False)
    assert unmask("sft", recipe, f"run.dir={run}", BOARD, "--resume").returncode == 0
    shown, expected = on_the_board(run), recorded(run)
    assert shown.keys() == expected.keys()
    assert shown == pytest.approx(expected, rel=1e-6)
    assert {("eval/accuracy", 6), ("step_s", 6), ("loss", 1)} <= shown.keys()


def test_metrics_do_not_depend_on_sinks(tmp_path, fake_wandb) -> None:
    recipe = write_recipe(tmp_path, "sft", SFT)
    assert unmask("sft", recipe, f"run.dir={tmp_path / 'plain'}").returncode == 0
    killed_after(5, "sft", recipe, f"run.dir={tmp_path / 'run'}", BOARD)
    words = [f"run.dir={tmp_path / 'run'}", PROJECT, "log.wandb_name=other"]  # log.* may change on the way
    assert unmask("sft", recipe, *words, "--resume").returncode == 0
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (tmp_path / "plain" / "metrics.jsonl").read_bytes()


def test_a_flush_makes_records_outlive_the_process(tmp_path) -> None:
    """The writer has a thread of its own: without the flush, most of these would die in its queue."""
    code = """if True:
        import os, sys
        from pathlib import Path
        from unmask.train.sinks import TensorBoardSink
        sink = TensorBoardSink(Path(sys.argv[1]), None)
        for step in range(500):
            sink.write(step, {"loss": step})
        sink.flush()
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "tensorboard")], check=True)
    assert on_the_board(tmp_path) == {("loss", step): step for step in range(500)}


def test_sinks_are_flushed_before_each_checkpoint(tmp_path, monkeypatch) -> None:
    done: list[str] = []
    save = CheckpointWriter.save
    monkeypatch.setattr(TensorBoardSink, "flush", lambda self: done.append("flush"))
    monkeypatch.setattr(CheckpointWriter, "save", lambda *words, **more: done.append("save") or save(*words, **more))
    assert unmask("sft", write_recipe(tmp_path, "sft", SFT), f"run.dir={tmp_path / 'run'}", BOARD).returncode == 0
    assert done == ["flush", "save"] * 3


def test_an_ended_run_writes_nothing_more(tmp_path) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    assert unmask("sft", recipe, f"run.dir={run}", BOARD, "train.max_steps=2").returncode == 0
    before = sorted((run / "tensorboard").iterdir())
    assert unmask("sft", recipe, f"run.dir={run}", BOARD, "train.max_steps=2", "--resume").returncode == 0
    assert sorted((run / "tensorboard").iterdir()) == before


class Service:
    """What W&B keeps: it answers a resumed run with the step to go on with."""

    def __init__(self) -> None:
        self.calls: list[dict] = []
        self.history: dict[int, dict[str, float]] = {}
        self.exit_codes: list[int] = []
        self.refusal = ""
        module = types.ModuleType("wandb")
        module.Error = type("Error", (Exception,), {})
        module.init = self.init
        self.module = module

    def init(self, **settings):
        if self.refusal:
            raise self.module.Error(self.refusal)
        self.calls.append(settings)
        run = types.SimpleNamespace(starting_step=max(self.history, default=-1) + 1)
        run.log, run.finish = self.log, lambda exit_code: self.exit_codes.append(exit_code)
        return run

    def log(self, values, step):
        row = self.history.setdefault(step, {})
        assert not row.keys() & values.keys(), "sent twice"
        assert step == max(self.history), "steps must ascend"
        row.update(values)


@pytest.fixture
def fake_wandb(monkeypatch) -> Service:
    service = Service()
    monkeypatch.setitem(sys.modules, "wandb", service.module)
    return service


def test_wandb_is_one_run_with_every_record_once(tmp_path, fake_wandb) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    killed_after(5, "sft", recipe, f"run.dir={run}", PROJECT)
    assert unmask("sft", recipe, f"run.dir={run}", PROJECT, "log.wandb_name=mine", "--resume").returncode == 0
    first, second = fake_wandb.calls
    assert first["id"] == second["id"] == (run / "wandb-id.txt").read_text().strip()
    assert (first["project"], first["name"], second["name"], first["resume"]) == ("demo", "run", "mine", "allow")
    assert first["config"]["train"]["batch_size"] == 8
    expected = recorded(run)
    sent = {(name, step): value for step, row in fake_wandb.history.items() for name, value in row.items()}
    assert sent.keys() == expected.keys()
    repeated = json.loads((run / "timings.jsonl").read_text().splitlines()[0])  # what a repeated step took may be another time
    assert {k: v for k, v in sent.items() if k[0] not in repeated} == {
        k: v for k, v in expected.items() if k[0] not in repeated
    }
    assert fake_wandb.exit_codes == [1, 0]


def test_wandb_that_refuses_is_one_line_and_leaves_the_folder_free(tmp_path, fake_wandb) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    fake_wandb.refusal = "No API key.\nLog in."
    result = unmask("sft", recipe, f"run.dir={run}", PROJECT)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "log.wandb_project: No API key. Log in. Then go on with --resume" in result.stderr
    fake_wandb.refusal = ""
    assert unmask("sft", recipe, f"run.dir={run}", PROJECT, "--resume").returncode == 0  # the lock went with the failure
    assert sorted(fake_wandb.history) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("word", "module", "extra"),
    [(BOARD, "torch.utils.tensorboard", "unmask[tensorboard]"), (PROJECT, "wandb", "unmask[wandb]")],
)
def test_a_missing_package_is_said_before_anything_is_done(tmp_path, monkeypatch, word, module, extra) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    result = unmask("sft", write_recipe(tmp_path, "sft", SFT), f"run.dir={tmp_path / 'run'}", word)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert f"pip install '{extra}'" in result.stderr
    assert not (tmp_path / "run").exists()

"""A run can die at any instant: killed and resumed it equals the uninterrupted run, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.recipes import RL, SFT, start, unmask, write_recipe
from unmask.metrics import read_metrics
from unmask.train import batches
from unmask.train.checkpoint import find_damage, list_checkpoints, newest_valid
from unmask.train.folder import lock_folder


def assert_same_end(a: Path, b: Path) -> None:
    """Weights, optimizer, counters and metrics, bit for bit."""
    last_a, last_b = (list_checkpoints(folder / "checkpoints")[-1] for folder in (a, b))
    assert last_a.name == last_b.name
    x, y = load_file(last_a / "model.safetensors"), load_file(last_b / "model.safetensors")
    assert x.keys() == y.keys()
    assert all(torch.equal(x[k], y[k]) for k in x)
    s, t = (torch.load(p / "trainer_state.pt", weights_only=True) for p in (last_a, last_b))
    assert equal(s["trainers"], t["trainers"])
    assert optimizer_state(last_a) == optimizer_state(last_b)
    assert equal(s["rng"], t["rng"])
    assert {k: s[k] for k in ("num_steps", "evaluation", "metrics_bytes", "reason")} == {
        k: t[k] for k in ("num_steps", "evaluation", "metrics_bytes", "reason")
    }
    assert (a / "metrics.jsonl").read_bytes() == (b / "metrics.jsonl").read_bytes()


def optimizer_state(checkpoint: Path) -> bytes:
    return (checkpoint / "optimizer" / "__0_0.distcp").read_bytes()


def equal(x, y) -> bool:
    if isinstance(x, torch.Tensor):
        return torch.equal(x, y)
    if isinstance(x, dict):
        return x.keys() == y.keys() and all(equal(x[k], y[k]) for k in x)
    if isinstance(x, list | tuple):
        return len(x) == len(y) and all(equal(p, q) for p, q in zip(x, y, strict=True))
    return x == y


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """An uninterrupted RL run."""
    folder = tmp_path_factory.mktemp("reference")
    recipe = write_recipe(folder, "rl", RL)
    result = unmask("rl", recipe, f"run.dir={folder / 'run'}")
    assert result.returncode == 0, result.stderr
    return folder / "run"


def test_the_reference_run_learns_something(reference) -> None:
    """What follows would prove little on a run without signal."""
    records = [json.loads(line) for line in (reference / "metrics.jsonl").read_text().splitlines()]
    assert sum(r.get("num_updates", 0) for r in records) >= 12
    assert len([r for r in records if "eval/accuracy" in r]) == 3


def test_killed_and_resumed_is_uninterrupted(reference, tmp_path) -> None:
    recipe, run = write_recipe(tmp_path, "rl", RL), tmp_path / "run"
    kill_and_resume(recipe, run, [(4, 0.05)])
    assert_same_end(reference, run)


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(10))
def test_killed_at_random_moments(reference, tmp_path, attempt) -> None:
    recipe, run = write_recipe(tmp_path, "rl", RL), tmp_path / "run"
    rng = random.Random(attempt)
    kill_and_resume(recipe, run, [(rng.randint(0, 4), rng.uniform(0, 0.5)) for _ in range(3)])
    assert_same_end(reference, run)


def kill_and_resume(recipe: Path, run: Path, kills: list[tuple[int, float]]) -> None:
    """SIGKILL when there are so many records more, and that many seconds later; then a run to the end."""
    file = run / "metrics.jsonl"
    for num_more, seconds in kills:
        wanted = num_more + (num_lines(file) or 0)
        process = start("rl", recipe, f"run.dir={run}", *(["--resume"] if (run / "recipe.toml").exists() else []))
        while process.poll() is None and (num_lines(file) is None or num_lines(file) < wanted):
            time.sleep(0.02)
        time.sleep(seconds)
        process.kill()
        process.communicate()
        if (run / "checkpoints").exists():
            assert all(find_damage(c) is None for c in list_checkpoints(run / "checkpoints"))
    result = unmask("rl", recipe, f"run.dir={run}", *(["--resume"] if (run / "recipe.toml").exists() else []))
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("name", "code"), [pytest.param("SIGINT", 130, marks=pytest.mark.slow), ("SIGTERM", 143)])
def test_signals_finish_the_step_and_save(reference, tmp_path, name, code) -> None:
    recipe, run = write_recipe(tmp_path, "rl", RL), tmp_path / "run"
    process = start("rl", recipe, f"run.dir={run}")
    wait_for_lines(run / "metrics.jsonl", 2)
    process.send_signal(getattr(signal, name))
    out, err = process.communicate(timeout=60)
    if process.returncode != 0:  # it may have been at its last step already
        assert process.returncode == code, err
        assert f"{name}: stopped after step " in out
        assert "Traceback" not in err
        steps = len([r for r in (run / "metrics.jsonl").read_text().splitlines() if "reward_mean" in r])
        assert newest_valid(run / "checkpoints")[0].name == f"step-{steps:08d}"  # nothing of the finished step is lost
        assert unmask("rl", recipe, f"run.dir={run}", "--resume").returncode == 0
    assert_same_end(reference, run)


def num_lines(file: Path) -> int | None:
    return len(file.read_bytes().splitlines()) if file.exists() else None


def wait_for_lines(file: Path, num: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (num_lines(file) or 0) >= num:
            return
        time.sleep(0.02)
    raise AssertionError(f"{file} never had {num} lines")


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> tuple[Path, Path]:
    """An SFT run that stopped after 4 of 6 steps."""
    folder = tmp_path_factory.mktemp("half")
    recipe = write_recipe(folder, "sft", SFT)
    result = unmask("sft", recipe, f"run.dir={folder / 'run'}", "train.max_steps=4")
    assert result.returncode == 0, result.stderr
    return recipe, folder / "run"


@pytest.fixture
def half_done(half, tmp_path) -> tuple[Path, Path]:
    """A copy of it."""
    recipe, run = half
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    return recipe, tmp_path / "run"


def test_resume_takes_the_newest_valid_and_says_what_it_skipped(half_done, tmp_path) -> None:
    recipe, run = half_done
    newest = list_checkpoints(run / "checkpoints")[-1]
    data = bytearray((newest / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (newest / "model.safetensors").write_bytes(data)
    result = unmask("sft", recipe, f"run.dir={run}", "--resume")
    assert result.returncode == 0, result.stderr
    assert f"{newest}: skipped, the checksum of model.safetensors does not match" in result.stderr
    assert "resuming after step 2" in result.stderr
    whole = tmp_path / "whole"
    assert unmask("sft", recipe, f"run.dir={whole}").returncode == 0
    assert_same_end(whole, run)


def test_resume_refuses_another_recipe(half_done) -> None:
    recipe, run = half_done
    result = unmask("sft", recipe, f"run.dir={run}", "optimizer.lr=0.5", "--resume")
    assert result.returncode == 2
    assert result.stderr.endswith("cannot resume, optimizer.lr was 0.003 and is now 0.5; use another run.dir\n")


def test_a_death_at_the_very_start_leaves_nothing_in_the_way(tmp_path) -> None:
    recipe, run = write_recipe(tmp_path, "sft", SFT), tmp_path / "run"
    run.mkdir()
    for name in (".lock", ".recipe.toml.tmp-123", ".versions.json.tmp-123"):
        (run / name).write_text("half")
    assert unmask("sft", recipe, f"run.dir={run}", "train.max_steps=2").returncode == 0
    assert not list(run.glob(".*.tmp-*"))


def test_a_second_process_is_kept_out(half_done) -> None:
    recipe, run = half_done
    before = (run / "metrics.jsonl").read_bytes()
    descriptor = lock_folder(run, resume=True)
    result = unmask("sft", recipe, f"run.dir={run}", "--resume")
    os.close(descriptor)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "another process is running in this folder" in result.stderr
    assert (run / "metrics.jsonl").read_bytes() == before
    assert unmask("sft", recipe, f"run.dir={run}", "--resume").returncode == 0  # the lock went with its holder


def drop(name):
    return lambda run: (run / name).unlink()


def empty_manifests(run) -> None:
    for checkpoint in list_checkpoints(run / "checkpoints"):
        (checkpoint / "manifest.json").write_text('{"files": {}}')


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("metrics.jsonl"), "metrics.jsonl: is not the file this run wrote"),
        (drop("timings.jsonl"), "timings.jsonl: is not the file this run wrote"),
        (lambda run: (run / "metrics.jsonl").write_text("x" * 5000), "metrics.jsonl: is not the file this run wrote"),
        (empty_manifests, "no checkpoint here is whole"),
        (drop("recipe.toml"), "nothing to resume here"),
        (lambda run: (run / "recipe.toml").write_bytes(b"\xff"), "recipe.toml: cannot be read"),
    ],
)
def test_resume_refuses_what_it_cannot_trust(half_done, damage, message) -> None:
    recipe, run = half_done
    damage(run)
    result = unmask("sft", recipe, f"run.dir={run}", "--resume")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    assert message in result.stderr
    assert len(list(run.glob("checkpoints/step-*"))) == 2  # nothing was thrown away


def test_stopping_rules(tmp_path) -> None:
    recipe = write_recipe(tmp_path, "sft", SFT)
    words = ["stop.metric=cut_share", "eval.every_steps=1"]  # an untrained model: some share between 0 and 1
    ended = unmask("sft", recipe, f"run.dir={tmp_path / 'a'}", *words, "stop.at_least=0.0", "stop.min_steps=3")
    assert "reached its target after step 3" in ended.stdout  # min_steps is waited for
    never = unmask("sft", recipe, f"run.dir={tmp_path / 'b'}", *words, "stop.at_least=1.1")
    assert "did all its steps after step 6" in never.stdout
    first = next(r for r in read_metrics(tmp_path / "b") if "eval/tokens_per_forward" in r)["eval/tokens_per_forward"]
    exactly = [f"run.dir={tmp_path / 'c'}", "stop.metric=tokens_per_forward", "eval.every_steps=1", f"stop.at_least={first!r}"]
    assert "reached its target after step 1:" in unmask("sft", recipe, *exactly).stdout  # "at least" includes equality
    higher = unmask("sft", recipe, f"run.dir={tmp_path / 'a'}", *words, "stop.at_least=1.1", "--resume")
    assert "did all its steps after step 6" in higher.stdout  # a raised target is gone after


def test_timings_are_cut_back_too(half_done) -> None:
    recipe, run = half_done
    with open(run / "timings.jsonl", "a") as file:
        file.write('{"step": 99}\n')
    assert unmask("sft", recipe, f"run.dir={run}", "--resume").returncode == 0
    steps = [json.loads(line)["step"] for line in (run / "timings.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_users_random_numbers_go_on(half_done, tmp_path, monkeypatch) -> None:
    """The global generators are restored: a function that draws from them continues its sequence."""
    drawn: list[tuple] = []
    original = batches.demonstration

    def drawing(*arguments):
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
        return original(*arguments)

    monkeypatch.setattr(batches, "demonstration", drawing)
    recipe = half_done[0]
    assert unmask("sft", recipe, f"run.dir={tmp_path / 'whole'}").returncode == 0
    whole = drawn[:]
    drawn.clear()
    assert unmask("sft", recipe, f"run.dir={tmp_path / 'parts'}", "train.max_steps=4").returncode == 0
    random.seed(999)
    assert unmask("sft", recipe, f"run.dir={tmp_path / 'parts'}", "--resume").returncode == 0
    assert drawn == whole


def test_a_run_folder_is_not_overwritten(half_done) -> None:
    recipe, run = half_done
    before = sorted(p.name for p in run.rglob("*"))
    result = unmask("sft", recipe, f"run.dir={run}")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "is not empty; continue that run with --resume" in result.stderr
    assert sorted(p.name for p in run.rglob("*")) == before


def test_finished_runs_stay_finished(half_done) -> None:
    recipe, run = half_done
    before = (run / "metrics.jsonl").read_bytes()
    result = unmask("sft", recipe, f"run.dir={run}", "train.max_steps=4", "--resume")
    assert result.returncode == 0, result.stderr
    assert (run / "metrics.jsonl").read_bytes() == before


def test_old_checkpoints_are_dropped(half_done) -> None:
    assert [c.name for c in list_checkpoints(half_done[1] / "checkpoints")] == ["step-00000002", "step-00000004"]
    unmask("sft", half_done[0], f"run.dir={half_done[1]}", "--resume")
    assert [c.name for c in list_checkpoints(half_done[1] / "checkpoints")] == ["step-00000004", "step-00000006"]

"""Several ranks train what one does, whatever happens to them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.several_runs import NUM_STEPS, REWARD, RUNS
from unmask import dist
from unmask.objectives.rows import TrainRow, pack_rows, share_packs
from unmask.train.checkpoint import find_damage, list_checkpoints
from unmask.train.timings import over_ranks, read_timings

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
# What follows from how rows are packed, and not from what they are.
FORWARDED = {"num_tokens", "num_forwarded_tokens"}
SHARDED_RUNS = ("sft", "sft-moe-sharded", "rl-sharded")


def python(*words: object, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def metrics_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a: Path, b: Path) -> None:
    """To 1e-6 (norms of gradients: 1e-5): float32 sums in another order, and what optimizers make of them."""
    one, two = metrics_of(a), metrics_of(b)
    assert [(r.keys(), r["step"]) for r in one] == [(r.keys(), r["step"]) for r in two]
    for x, y in zip(one, two, strict=True):
        for key in x.keys() - FORWARDED:
            tolerance = 1e-5 if "grad_norm" in key else 1e-6
            assert math.isclose(x[key], y[key], rel_tol=tolerance, abs_tol=tolerance), (a.name, x["step"], key, x[key], y[key])


def run_on_both(make_folder, num_steps: int, *names: str) -> tuple[Path, Path]:
    """The same runs of one rank, and of two. num_steps: 0 = each run's own."""
    folders = (make_folder("one"), make_folder("two"))
    for folder, launcher in zip(folders, ([], TORCHRUN), strict=True):
        result = python(*launcher, "-m", "tests.train.several_runs", folder, num_steps, *names)
        assert result.returncode == 0, result.stderr[-3000:]
    return folders


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    return run_on_both(tmp_path_factory.mktemp, 0, *SHARDED_RUNS)


@pytest.fixture(scope="module")
def other_runs(tmp_path_factory) -> tuple[Path, Path]:
    return run_on_both(tmp_path_factory.mktemp, 0, *(RUNS.keys() - SHARDED_RUNS))


@pytest.mark.parametrize("name", SHARDED_RUNS)
def test_two_ranks_are_one(runs, name) -> None:
    one, two = runs
    assert max(record["step"] for record in metrics_of(one / name)) == NUM_STEPS[name]
    assert_equal(one / name, two / name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RUNS.keys() - SHARDED_RUNS))
def test_two_ranks_are_one_in_other_ways(other_runs, name) -> None:
    test_two_ranks_are_one(other_runs, name)


@pytest.mark.slow
def test_two_ranks_are_one_for_twenty_steps(tmp_path_factory) -> None:
    names = ["sft", "sft-copies", "rl"]
    one, two = run_on_both(tmp_path_factory.mktemp, 20, *names)
    for name in names:
        assert max(record["step"] for record in metrics_of(one / name)) == 20
        assert_equal(one / name, two / name)


def test_every_rank_is_watched(runs) -> None:
    """Its timings, its log, its profile; TensorBoard is written by the first alone, and has the mean and the largest."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one, two = (folder / "sft-moe-sharded" for folder in runs)
    assert all("rank" not in records[0] for _, records in read_timings(one))
    steps = dict(read_timings(two))
    assert list(steps) == [1, 2, 3, 4, 5, 6]
    for step, records in steps.items():
        assert [record["rank"] for record in records] == [0, 1]
        assert all(record["update_wait_s"] <= record["update_s"] for record in records)
        together = sum(record["num_own_tokens"] for record in records)
        [metrics] = [record for record in metrics_of(two) if record["step"] == step and "loss" in record]
        assert together == metrics["num_tokens"]
    assert sorted(path.name for path in (two / "logs").iterdir()) == ["rank-0.jsonl", "rank-1.jsonl"]
    for rank in (0, 1):
        lines = [json.loads(line) for line in (two / "logs" / f"rank-{rank}.jsonl").read_text().splitlines()]
        assert (lines[0]["message"], lines[0]["rank"], lines[0]["num_ranks"]) == ("start", rank, 2)
        assert [line["step"] for line in lines if line["message"] == "step"] == [1, 2, 3, 4, 5, 6]
        assert lines[-1]["message"] == "end"
    names = [f"step-00000002-rank-{rank}.json.gz" for rank in (0, 1)]
    assert sorted(path.name for path in (two / "profiles").iterdir()) == names
    assert len(list((two / "tensorboard").iterdir())) == 1
    board = EventAccumulator(str(two / "tensorboard")).Reload()
    for name, of_step in over_ranks(steps[3]).items():
        [value] = [event.value for event in board.Scalars(name) if event.step == 3]
        assert math.isclose(value, of_step, rel_tol=1e-6)


def of_length(num_tokens: int, prompt: int = 0) -> TrainRow:
    tokens = np.arange(num_tokens)
    ids = np.where(tokens < 4 * bool(prompt), prompt, tokens)
    nothing = np.zeros(0, dtype=np.int64)
    return TrainRow(ids, tokens, tokens, np.zeros_like(tokens), nothing, nothing, num_shared=4 * bool(prompt))


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 8])
def test_packs_are_shared_out_evenly(num_ranks) -> None:
    rng = np.random.default_rng(num_ranks)
    for num_rows in (1, 2, 5, 40, 200):
        rows = [
            of_length(int(n), int(p)) for n, p in zip(rng.integers(5, 30, num_rows), rng.integers(0, 4, num_rows), strict=True)
        ]
        shares = share_packs(rows, 64, num_ranks)
        assert sorted(id(row) for packs in shares for pack in packs for row in pack) == sorted(map(id, rows))
        counts = [len(packs) for packs in shares]
        assert counts == sorted(counts, reverse=True)
        assert max(counts) - min(counts) <= 1
        assert max(counts) == -(-len(list(pack_rows(rows, 64))) // num_ranks)  # no more rounds than without ranks
        if num_rows == 200:
            tokens = [sum(len(row.input_ids) for pack in packs for row in pack) for packs in shares]
            assert max(tokens) <= 1.2 * np.mean(tokens)
    assert share_packs(rows, 64, 1) == [list(pack_rows(rows, 64))]


@pytest.mark.parametrize("num_bytes", [1, 100, 10**6])
def test_sums_of_many_tensors(monkeypatch, num_bytes) -> None:
    """Each counts once, whatever is summed with it."""
    monkeypatch.setattr(dist, "BUCKET_BYTES", num_bytes)
    monkeypatch.setattr(dist.dist, "all_reduce", lambda flat: flat.mul_(2))
    tensors = [torch.full(shape, float(i)) for i, shape in enumerate(((), (3, 5), (0,), (40,), (2, 2, 2)))]
    dist.Ranks(0, 2).sum_(tensors)
    assert all(bool((tensor == 2 * i).all()) for i, tensor in enumerate(tensors))


def settings_of(name: str, run: Path) -> list[str]:
    """Of one of the runs, in another folder."""
    of_reward = (
        [f"reward.name={run.parent / 'reward.py'}:share_of_digits", "reward.options={}"] if name.startswith("rl") else []
    )
    if of_reward:
        (run.parent / "reward.py").write_text(REWARD)
    own = [f"run.dir={run}", f"train.max_steps={NUM_STEPS[name]}", "run.num_threads=1"]
    return ["optimizer.lr=1e-3", *RUNS[name][1], *of_reward, *own]


class Started:
    """`unmask sft --nproc 2`, in a group of processes of its own."""

    def __init__(
        self, recipe: Path, run: Path, *words: str, name: str = "sft", env: dict[str, str] | None = None,
        command: list[str] | None = None,
    ):  # fmt: skip
        unmask = [sys.executable, "-m", "unmask", name.split("-")[0], str(recipe), *settings_of(name, run), "--nproc", "2"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command or [*unmask, *words], text=True, env={**os.environ, **(env or {})}, **pipes)

    def ranks(self) -> list[int]:
        """Their process ids, in the order of the ranks."""
        found = {}
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                entries = dict(e.split("=", 1) for e in path.read_bytes().decode(errors="replace").split("\0") if "=" in e)
                parent = int((path.parent / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            if parent == self.process.pid and "LOCAL_RANK" in entries:
                found[int(entries["LOCAL_RANK"])] = int(path.parent.name)
        return [found[rank] for rank in sorted(found)]

    def kill(self, rank: int, file: Path, num_lines: int) -> list[int]:
        """Ends a rank when there are so many lines, and waits until the launcher has seen it; all ranks as they were."""
        self.wait_for(file, num_lines)
        os.kill((ranks := self.ranks())[rank], signal.SIGKILL)
        deadline = time.monotonic() + 120
        while any(Path(f"/proc/{pid}").exists() for pid in ranks):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return ranks

    def wait_for(self, file: Path, num_lines: int) -> None:
        deadline = time.monotonic() + 120
        while not file.exists() or file.read_text().count("\n") < num_lines:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_a_rank_that_dies_ends_all_and_the_run_goes_on_as_if_it_had_not(runs, tmp_path) -> None:
    """Its launcher starts all again, as often as is said; then it is resumed."""
    recipe, run = runs[1] / "sft.toml", tmp_path / "run"
    started, killed = Started(recipe, run, "--max-restarts", "1"), []
    for rank, num_lines in ((0, 2), (1, 6)):
        killed.append(started.kill(rank, run / "metrics.jsonl", num_lines))
    code, _, err = started.end()
    assert code == 128 + signal.SIGKILL
    wanted = [
        f"error: rank {rank} (process {ranks[rank]}) failed, and all ranks were ended: was ended by signal 9"
        for rank, ranks in enumerate(killed)
    ]
    again = "all ranks start again (--max-restarts: 0 left)"
    assert [line for line in err.splitlines() if not line.startswith(("resuming", str(run)))] == [wanted[0], again, wanted[1]]
    assert not any(Path(f"/proc/{pid}").exists() for ranks in killed for pid in ranks)
    shutil.copytree(run, tmp_path / "alone")
    code, out, err = Started(recipe, run, "--resume").end()
    assert (code, f"did all its steps after step {NUM_STEPS['sft']}" in out) == (0, True), err
    assert (run / "metrics.jsonl").read_bytes() == (runs[1] / "sft" / "metrics.jsonl").read_bytes()
    result = python("-m", "unmask", "sft", recipe, *settings_of("sft", tmp_path / "alone"), "--resume")  # on one rank
    assert result.returncode == 0, result.stderr
    assert_equal(runs[0] / "sft", tmp_path / "alone")


# Python runs it as it starts: the second rank has too little memory from its 30th pack on.
SMALL_DEVICE = """
import os

if os.environ.get("RANK") == "1":
    import torch
    from unmask.train import trainer

    collate, calls = trainer.collate, []

    def on_small_device(rows, device):
        batch = collate(rows, device)
        calls.append(batch)
        if len(calls) > 30 and batch.input_ids_BL.numel() > 50:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return batch

    trainer.collate = on_small_device
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
def test_ranks_start_again_with_smaller_packs(runs, tmp_path) -> None:
    """Where memory is short of ranks that share weights."""
    run = tmp_path / "run"
    (tmp_path / "sitecustomize.py").write_text(SMALL_DEVICE)
    code, out, err = Started(runs[1] / "sft.toml", run, env={"PYTHONPATH": str(tmp_path)}).end()
    assert code == 0, err
    assert (
        "model: out of memory with packs of 64 tokens, on ranks that share the weights; --resume goes on with packs of 32"
    ) in err.splitlines()
    assert f"model: packs of 32 tokens, since memory was short ({run / 'max-tokens.json'})" in err.splitlines()
    assert "resuming after step" in err
    assert json.loads((run / "max-tokens.json").read_text()) == {"recipe": 64, "model": 32}
    assert f"did all its steps after step {NUM_STEPS['sft']}" in out
    assert_equal(runs[1] / "sft", run)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
@pytest.mark.slow
def test_a_signal_saves_and_a_mistake_is_one_line(runs, tmp_path) -> None:
    recipe, run = runs[1] / "sft.toml", tmp_path / "run"
    started = Started(recipe, run, "checkpoint.every_steps=0", "train.max_steps=100000")
    started.wait_for(run / "metrics.jsonl", 3)
    started.process.send_signal(signal.SIGTERM)
    code, out, err = started.end()
    assert code == 128 + signal.SIGTERM, err
    assert "SIGTERM: stopped after step" in out
    [checkpoint] = (run / "checkpoints").iterdir()
    assert int(checkpoint.name[-8:]) == max(record["step"] for record in metrics_of(run))
    code, out, err = Started(recipe, run).end()  # found by the first rank alone
    assert (code, out) == (2, "")
    assert err == f"error: {run}: is not empty; continue that run with --resume or choose another run.dir\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
@pytest.mark.parametrize("attempt", range(20))
def test_killed_at_random_moments(runs, tmp_path, attempt) -> None:
    """One rank, or all of them with their launcher, whatever they are at: weights sharded, a value model, saving beside it."""
    run, rng = tmp_path / "run", random.Random(attempt)
    started = Started(runs[1] / "rl-sharded.toml", run, name="rl-sharded")
    started.wait_for(run / "metrics.jsonl", rng.randint(1, 7))  # of ten lines
    time.sleep(rng.uniform(0, 1.5))
    victims = started.ranks()
    if attempt % 2:
        victims = [started.process.pid, *victims]
    elif victims:
        victims = [rng.choice(victims)]
    assert victims, "the run had ended"
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    started.end()
    for checkpoint in list_checkpoints(run / "checkpoints"):
        assert find_damage(checkpoint) is None
    resume = ["--resume"] if (run / "recipe.toml").exists() else []
    code, _, err = Started(runs[1] / "rl-sharded.toml", run, *resume, name="rl-sharded").end()
    assert code == 0, err
    assert (run / "metrics.jsonl").read_bytes() == (runs[1] / "rl-sharded" / "metrics.jsonl").read_bytes()
    a, b = (list_checkpoints(folder / "checkpoints")[-1] for folder in (run, runs[1] / "rl-sharded"))
    for name in ("model.safetensors", "value_model/model.safetensors", "optimizer/__0_0.distcp", "optimizer/__1_0.distcp"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


@pytest.mark.slow
def test_torchrun_starts_again(runs, tmp_path) -> None:
    """Its ranks go on with what they began, and only with that."""
    recipe, run = runs[1] / "sft.toml", tmp_path / "run"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1", "-m", "unmask", "sft"]
    command = [sys.executable, *words, str(recipe), *settings_of("sft", run)]
    started = Started(recipe, run, command=command)
    started.kill(0, run / "metrics.jsonl", 4)
    code, out, err = started.end()
    assert code == 0, err
    assert f"did all its steps after step {NUM_STEPS['sft']}" in out
    assert (run / "metrics.jsonl").read_bytes() == (runs[1] / "sft" / "metrics.jsonl").read_bytes()
    before = (run / "metrics.jsonl").stat().st_mtime_ns
    code, _, err = Started(recipe, run, command=command).end()  # is refused, and refused again
    assert code == 1
    assert "is not empty; continue that run with --resume" in err
    assert (run / "metrics.jsonl").stat().st_mtime_ns == before


@pytest.mark.slow
def test_limits_of_time_hold_for_all(runs, tmp_path) -> None:
    result = Started(runs[1] / "sft.toml", tmp_path / "run", "train.max_hours=1e-9").end()
    assert (result[0], result[1].strip()) == (0, "train.max_hours: stopped after step 1, saved; continue with --resume"), result
    assert (tmp_path / "run" / "checkpoints" / "step-00000001" / "manifest.json").exists()


@pytest.mark.slow
def test_two_copies_of_two_ranks_each_are_one(runs, tmp_path) -> None:
    """HSDP: parts of weights within a copy, gradients added over copies."""
    words = [*settings_of("sft", tmp_path / "run"), "train.shard_size=2", "train.max_steps=4", "eval.every_steps=0"]
    result = python("-m", "unmask", "sft", runs[1] / "sft.toml", *words, "--nproc", 4)
    assert result.returncode == 0, result.stderr
    wanted = [record for record in metrics_of(runs[0] / "sft") if "loss" in record][:4]
    for one, four in zip(wanted, metrics_of(tmp_path / "run"), strict=True):
        assert math.isclose(one["loss"], four["loss"], rel_tol=1e-6)
        assert math.isclose(one["grad_norm"], four["grad_norm"], rel_tol=1e-5)
    result = python("-m", "unmask", "sft", runs[1] / "sft.toml", *words, "train.shard_size=3", "--nproc", 4, "--resume")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "train.shard_size 3 does not divide the 4 ranks of this run" in result.stderr

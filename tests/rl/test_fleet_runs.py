"""Runs whose actors, reward workers and machines die at any moment. Minutes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.recipes import RL, start, write_recipe
from tests.rl.test_fleet import assert_equal_runs
from tests.train.test_durability import assert_same_end
from unmask.metrics import read_metrics

pytestmark = pytest.mark.slow
WORDS = ("train.max_steps=80", "eval.every_steps=10", "run.num_threads=1", "fleet.num_actors=2", "reward.options.num_workers=1")
# Rounding differs between who decodes and who trains; after some 60 steps the first token is another one for it.
NUM_EQUAL = 20
OPTIONS = "options = { wrong_reward = 0.5, is_cut_wrong = false }\n"  # of the reward that stands there
REWARD = "def f(rollout, example):\n    return len(rollout.trace.response_ids) % 3 / 2, example.id"


def descendants(pid: int, name: str) -> list[int]:
    """Processes below this one whose command line has the name."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(file.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(file.parent.name))
    found, todo = [], [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            todo.append(child)
            try:
                if name in Path(f"/proc/{child}/cmdline").read_text():
                    found.append(child)
            except OSError:
                continue
    return found


def kill_now_and_then(process: subprocess.Popen[str], names: tuple[str, ...], every_s: float, most: int) -> list[str]:
    """SIGKILL to a random one of the run's processes of each of these names, so often at most, until it has ended; what was
    killed."""
    killed, rng = [], random.Random(most)
    while process.poll() is None and len(killed) < most:
        time.sleep(rng.uniform(0.5, 1.5) * every_s)
        for name in names:
            if pids := descendants(process.pid, name):
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    killed.append(name)
    return killed


def run(
    tmp_path: Path, name: str, *words: str, names: tuple[str, ...] = (), every_s: float = 20.0, most: int = 10**6
) -> tuple[Path, list[str]]:
    (tmp_path / "own.py").write_text(REWARD)
    text = RL.replace('"exact"', f'"{tmp_path / "own.py"}:f"').replace(OPTIONS, "")
    recipe, folder = write_recipe(tmp_path, "rl", text), tmp_path / name
    process = start("rl", recipe, *WORDS, f"run.dir={folder}", *words)
    killed: list[str] = []
    if names:
        watcher = threading.Thread(target=lambda: killed.extend(kill_now_and_then(process, names, every_s, most)))
        watcher.start()
    _, err = process.communicate(timeout=1800)
    if names:
        watcher.join()
    assert process.returncode == 0, err
    return folder, killed


@pytest.fixture(scope="module")
def quiet(tmp_path_factory) -> Path:
    """Nobody dies."""
    return run(tmp_path_factory.mktemp("quiet"), "run")[0]


def test_it_is_the_run_without_actors(quiet, tmp_path) -> None:
    assert_equal_runs(run(tmp_path, "plain", "fleet.num_actors=0", "train.max_steps=20")[0], quiet, NUM_EQUAL)


@pytest.mark.parametrize("transfer", ["object_store", "collective"])
def test_deaths_change_nothing_but_the_time(quiet, tmp_path, transfer) -> None:
    names = ("ray::RolloutActor", "unmask.rewards.worker")
    folder, killed = run(tmp_path, "run", f"fleet.weight_transfer={transfer}", names=names)
    assert "ray::RolloutActor" in killed
    assert_same_end(quiet, folder)


LONG = "train.max_steps=400"


@pytest.fixture(scope="module")
def long_and_quiet(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("long"), "run", LONG)[0]


@pytest.mark.parametrize(("name", "every_s"), [("ray::RolloutActor", 9.0), ("unmask.rewards.worker", 4.0)])
def test_twenty_deaths_at_random_moments(long_and_quiet, tmp_path, name, every_s) -> None:
    folder, killed = run(tmp_path, "run", LONG, names=(name,), every_s=every_s, most=20)
    assert len(killed) == 20
    assert_same_end(long_and_quiet, folder)


def test_ahead_killed_and_resumed(tmp_path) -> None:
    """The run itself is killed twice; and its actors and Ray end with it."""
    wanted, _ = run(tmp_path, "wanted", "fleet.max_staleness=1")
    folder, words = tmp_path / "run", ("fleet.max_staleness=1",)
    for attempt in range(2):
        process = start("rl", tmp_path / "rl.toml", *WORDS, f"run.dir={folder}", *words, *(["--resume"] if attempt else []))
        deadline = time.monotonic() + 300
        while len(read_metrics(folder) if (folder / "metrics.jsonl").exists() else []) < 7 * (attempt + 1):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        below = descendants(process.pid, "ray")
        process.kill()
        process.communicate()
        deadline = time.monotonic() + 120  # actors go at once; agents of Ray's own look each minute whether it is there
        while any(Path(f"/proc/{pid}").exists() for pid in below):
            assert time.monotonic() < deadline, "Ray goes on without the run"
            time.sleep(0.5)
    run(tmp_path, "run", *words, "--resume")
    assert_same_end(wanted, folder)


def test_two_ranks_with_actors_are_one_without(tmp_path) -> None:
    alone, _ = run(tmp_path, "alone", "fleet.num_actors=0", "train.max_steps=20")
    ranks, _ = run(tmp_path, "ranks", "--nproc", "2", "train.max_steps=20")
    assert_equal_runs(alone, ranks, NUM_EQUAL)

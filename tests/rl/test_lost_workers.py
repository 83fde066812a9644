"""Reward workers that are killed or stopped while a run needs them: it goes on, and nothing in it is another."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.recipes import RL, start, unmask, write_recipe
from unmask.metrics import read_metrics

# Says which process is at work on a response; its time in it is long enough to be found there.
REWARD = """
import os, pathlib, time

def slow(rollout, example):
    here = pathlib.Path(__file__).with_name("at-work") / str(os.getpid())
    here.touch()
    time.sleep(0.1)
    here.unlink()
    return len(rollout.text) % 3 / 2
"""


def at_work(folder: Path, harmed: list[int]) -> int:
    """A process that is at work on a response, none of those."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for file in folder.iterdir():
            if int(file.name) not in harmed:
                return int(file.name)
        time.sleep(0.002)
    raise AssertionError("nobody is at work")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for stopped processes")
def test_a_run_does_not_notice(tmp_path) -> None:
    (tmp_path / "own.py").write_text(REWARD)
    (tmp_path / "at-work").mkdir()
    text = RL.replace(
        'name = "exact"\noptions = { wrong_reward = 0.5, is_cut_wrong = false }', f'name = "{tmp_path}/own.py:slow"'
    )
    recipe = write_recipe(tmp_path, "rl", text)
    words = ["reward.options.num_workers=2", "train.max_steps=2", "eval.every_steps=0"]
    assert unmask("rl", recipe, *words, f"run.dir={tmp_path / 'quiet'}").returncode == 0
    assert list((tmp_path / "at-work").iterdir()) == []
    process = start("rl", recipe, *words, f"run.dir={tmp_path / 'disturbed'}")
    harmed: list[int] = []
    for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL):
        pid = at_work(tmp_path / "at-work", harmed)
        os.kill(pid, number)
        harmed.append(pid)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert len(set(harmed)) == 3
    assert not any(Path(f"/proc/{pid}").exists() for pid in harmed)
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("quiet", "disturbed")]
    assert metrics[0] == metrics[1]
    assert sum(record["num_updates"] for record in read_metrics(tmp_path / "quiet")) > 0

"""Reward workers: the same scores, errors that name the example, and an end with whoever started them."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.rl.scoring import RewardPool, score
from unmask.types import Example, Message, Rollout, Trace


def rollout() -> tuple[Rollout, Example]:
    trace = Trace([5], [1], [0], [0.0], [1.0], 1, 4, 1, "stop")
    return Rollout(trace, "\\boxed{7}"), Example(id="q", messages=(Message(role="user", content="?"),), answer="7")


def test_workers_score_as_this_process_does() -> None:
    with RewardPool(Plugin(name="boxed"), 2) as pool:
        results = [pool.submit(*rollout()) for _ in range(5)]
        assert [result() for result in results] == [RewardPool(Plugin(name="boxed")).submit(*rollout())()] * 5
        for pid in list(pool._pool._processes):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(UnmaskError, match="example q: a worker process of the reward died"):
            pool.submit(*rollout())()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "example q: the reward function gave None; expected"),
        (1.0, "gave 1.0; expected (reward, reason)"),
        ((None, "x"), "gave the reward None; expected a finite number"),
        ((math.nan, "x"), "gave the reward nan; expected a finite number"),
        (("1", "x"), "gave the reward '1'; expected a finite number"),
        ((1.0, "x", [0.1, 0.2]), "gave token rewards of shape (2,) for 1 response tokens"),
        ((1.0, "x", []), "gave token rewards of shape (0,) for 1 response tokens"),
        ((1e300, "x"), "gave the reward 1e+300; expected a finite number"),
        ((1.0, "x", 0.5), "gave token rewards of shape () for 1 response tokens"),
        ((1.0, "x", [math.inf]), "gave token rewards that are not all finite numbers"),
    ],
)
def test_scores_are_checked(result, message) -> None:
    with pytest.raises(UnmaskError) as error:
        score(lambda rollout, example: result, *rollout())
    assert message in str(error.value)


def test_scores_become_plain_numbers() -> None:
    got = score(lambda rollout, example: (np.float32(0.5), "x", np.array([1])), *rollout())
    assert got == (0.5, "x", [1.0])
    assert [type(value) for value in (got.reward, *got.token_rewards)] == [float, float]
    assert score(lambda rollout, example: (True, "x"), *rollout()) == (1.0, "x", None)


def test_what_a_reward_raises_names_the_example() -> None:
    def fails(rollout, example):
        raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside") as error:
        score(fails, *rollout())
    assert error.value.__notes__ == ["while function scored a response to example q"]


# Starts two workers, says their process ids, and waits.
PARENT = """
import signal, sys, time
from tests.rl.test_scoring import RewardPool, Plugin, rollout
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    with RewardPool(Plugin(name="boxed"), 2) as pool:
        [result() for result in [pool.submit(*rollout()) for _ in range(4)]]
        try:
            print(*pool._pool._processes, flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print(pool.submit(*rollout())().reward, flush=True)
"""


@pytest.fixture
def parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    path = os.pathsep.join(["src", "."])
    process = subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )  # fmt: skip
    with process:
        yield process
        process.kill()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # a zombie has ended, and waits for whoever inherited it
        return file.read().rpartition(")")[2].split()[0] != "Z"


def test_workers_end_with_their_parent(parent) -> None:
    workers = [int(word) for word in parent.stdout.readline().split()]
    assert workers
    assert all(map(is_alive, workers))
    parent.kill()
    deadline = time.monotonic() + 20
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, workers))


def test_control_c_is_for_the_parent(parent) -> None:
    """A terminal sends it to the whole group; workers go on scoring for a run that is being saved."""
    assert parent.stdout.readline().split()
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.stdout.readline() == "1.0\n"
    assert parent.wait(timeout=20) == 0

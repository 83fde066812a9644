"""Scoring beside decoding: checked scores, errors that name the example, workers that end with whoever started them."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest

from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.rewards import REWARDS, Reward, Score
from unmask.rl.scoring import RewardPool, score
from unmask.types import Example, Message, Rollout, Trace


def rollout() -> tuple[Rollout, Example]:
    trace = Trace([5], [1], [0], [0.0], [1.0], 1, 4, 1, "stop")
    return Rollout(trace, "\\boxed{7}"), Example(id="q", messages=(Message(role="user", content="?"),), answer="7")


def constant(result):
    """A reward that gives the result, whatever it is."""

    class Constant(Reward):
        async def __call__(self, rollout, example):
            return result

    return Constant(None)


class Slow(Reward):
    """Ends when it is told to."""

    def __init__(self, options):
        super().__init__(options)
        self.go, self.events = threading.Event(), []

    async def start(self):
        self.events.append("started")

    async def close(self):
        self.events.append("closed")

    async def __call__(self, rollout, example):
        self.events.append("begun")
        while not self.go.is_set():
            await asyncio.sleep(0.001)
        return Score(1.0, "slow")


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setitem(REWARDS, "slow", Slow)
    return Plugin(name="slow")


def test_responses_are_scored_at_the_same_time_as_others_and_as_the_caller(slow) -> None:
    with RewardPool(slow) as pool:
        assert pool.reward.events == ["started"]
        results = [pool.submit(*rollout()) for _ in range(3)]
        deadline = time.monotonic() + 10
        while pool.reward.events.count("begun") < 3 and time.monotonic() < deadline:
            time.sleep(0.001)
        pool.reward.go.set()
        assert [result.result() for result in results] == [Score(1.0, "slow", None, {})] * 3
    assert pool.reward.events == ["started", *["begun"] * 3, "closed"]


def test_leaving_does_not_wait_for_scores_that_nobody_wants(slow) -> None:
    before = threading.active_count()
    with RewardPool(slow) as pool:
        result = pool.submit(*rollout())
    assert pool.reward.events[-1] == "closed"
    with pytest.raises(CancelledError):
        result.result()
    assert threading.active_count() == before


def test_a_pool_starts_by_itself() -> None:
    assert RewardPool(Plugin(name="exact")).submit(*rollout()).result() == (1.0, "right", None, {})


def test_what_cannot_start_is_closed_and_said(slow, monkeypatch) -> None:
    async def start(self):
        raise UnmaskError("no parser here")

    monkeypatch.setattr(Slow, "start", start)
    pool = RewardPool(slow)
    with pytest.raises(UnmaskError, match="no parser here"), pool:
        pass
    assert pool.reward.events == ["closed"]


def test_groups_are_finished_and_checked(slow, monkeypatch) -> None:
    member, example = rollout()
    pool = RewardPool(slow)
    scores = [Score(1.0), Score(3.0)]
    assert [score.reward for score in pool.finish_group([member] * 2, scores, example)] == [1.0, 3.0]
    monkeypatch.setattr(Slow, "finish_group", lambda self, rollouts, scores: [Score(math.nan)] * 2)
    with pytest.raises(UnmaskError, match="example q: the reward Slow gave the reward nan"):
        pool.finish_group([member] * 2, scores, example)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "example q: the reward Constant gave None; expected a Score"),
        (1.0, "gave 1.0; expected a Score: (reward, reason"),
        ((None, "x"), "gave the reward None; expected a finite number"),
        ((math.nan, "x"), "gave the reward nan; expected a finite number"),
        (("1", "x"), "gave the reward '1'; expected a finite number"),
        ((1.0, "x", [0.1, 0.2]), "gave token rewards of shape (2,) for 1 response tokens"),
        ((1.0, "x", []), "gave token rewards of shape (0,) for 1 response tokens"),
        ((1e300, "x"), "gave the reward 1e+300; expected a finite number"),
        ((1.0, "x", 0.5), "gave token rewards of shape () for 1 response tokens"),
        ((1.0, "x", [math.inf]), "gave token rewards that are not all finite numbers"),
        ((1.0, "x", None, {"part": math.nan}), "gave the parts {'part': nan}; expected finite numbers by name"),
        ((1.0, "x", None, [1.0]), "gave the parts [1.0]; expected finite numbers by name"),
    ],
)
def test_scores_are_checked(result, message) -> None:
    with pytest.raises(UnmaskError) as error:
        asyncio.run(score(constant(result), *rollout()))
    assert message in str(error.value)


def test_scores_become_plain_numbers() -> None:
    got = asyncio.run(score(constant((np.float32(0.5), "x", np.array([1]), {"part": np.int64(2)})), *rollout()))
    assert got == (0.5, "x", [1.0], {"part": 2.0})
    assert [type(value) for value in (got.reward, *got.token_rewards, *got.parts.values())] == [float] * 3
    assert asyncio.run(score(constant((True, "x")), *rollout())) == (1.0, "x", None, {})


def test_what_a_reward_raises_names_the_example() -> None:
    class Fails(Reward):
        async def __call__(self, rollout, example):
            raise ZeroDivisionError("inside")

    with pytest.raises(ZeroDivisionError, match="inside") as error:
        asyncio.run(score(Fails(None), *rollout()))
    assert error.value.__notes__ == ["while Fails scored a response to example q"]


# Starts workers, gives two of them what does not end, and says the process ids: first of one that runs Python code, then of one
# that holds the interpreter's lock, then of the one that stands by.
PARENT = """
import signal, sys, time
from tests.rl.test_scoring import RewardPool, Plugin, rollout
from tests.rewards.responses import example, rollout as response
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    with RewardPool(Plugin(name=sys.argv[1], options={"num_workers": 3, "time_limit": 8.0})) as pool:
        pool.submit(*rollout()).result()
        workers = pool.reward.pool
        while workers._idle.qsize() < 4:
            time.sleep(0.01)
        busy = []
        for text in sys.argv[2:]:
            before = set(workers._idle._queue)
            pool.submit(response(text), example())
            while len(before - set(workers._idle._queue)) < 1:
                time.sleep(0.01)
            busy += before - set(workers._idle._queue)
        time.sleep(0.3)
        try:
            print(*(worker._process.pid for worker in [*busy, *workers._idle._queue]), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print(pool.submit(*rollout()).result().reward, flush=True)
"""
REWARD = """
def f(rollout, example):
    while rollout.text == "loop":
        pass
    if rollout.text == "lock":
        sum(range(10**12))  # C code that looks at no signal
    return 1.0
"""


@pytest.fixture
def parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    (tmp_path / "reward.py").write_text(REWARD)
    path = os.pathsep.join(["src", "."])
    command = [sys.executable, script, f"{tmp_path / 'reward.py'}:f", "loop", "lock"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path},
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


@pytest.mark.slow
def test_workers_end_with_their_parent(parent) -> None:
    """At once, if they can; one that holds the interpreter's lock half a second after its time limit."""
    loop, lock, *idle = (int(word) for word in parent.stdout.readline().split())
    assert len(idle) == 2
    assert all(map(is_alive, [loop, lock, *idle]))
    parent.kill()
    for pids, seconds in (([loop, *idle], 4), ([lock], 12)):
        deadline = time.monotonic() + seconds
        while any(map(is_alive, pids)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(is_alive, pids))


def test_control_c_is_for_the_parent(parent) -> None:
    """A terminal sends it to the whole group; workers go on scoring for a run that is being saved."""
    workers = [int(word) for word in parent.stdout.readline().split()]
    for pid in workers:
        os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    assert all(map(is_alive, workers))
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.stdout.readline() == "1.0\n"
    assert parent.wait(timeout=20) == 0

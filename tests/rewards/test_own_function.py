"""Functions in files of one's own as rewards."""

from __future__ import annotations

import pytest

from tests.rewards.responses import example, rollout, scored
from unmask.errors import UnmaskError

FILE = """
import asyncio, sys
from typing import NamedTuple
import beside
from unmask.rewards import Score

class Result(NamedTuple):
    reward: float
    reason: str

def number(rollout, example):
    print("printed")
    return len(rollout.text) + int(example.answer)

def reasoned(rollout, example):
    return 0.5, "half"

async def slow(rollout, example):
    await asyncio.sleep(0.01)
    return Score(1.0, "slow", [0.25], {"part": 2.0})

def like(rollout, example):
    return Result(beside.VALUE, "like a score")

def hang(rollout, example):
    while rollout.text == "hang":
        pass
    return 1

def leave(rollout, example):
    sys.exit()

def fail(rollout, example):
    return 1 / 0

def nothing(rollout, example):
    return None

value = 3
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "beside.py").write_text("VALUE = 0.75")
    path = tmp_path / "json.py"  # a name that others import
    path.write_text(FILE)
    return path


def test_what_a_function_may_return(file) -> None:
    def get(name):
        return scored(f"{file}:{name}", rollout("abc"))

    assert get("number") == (10, "", None, {})
    assert get("reasoned") == (0.5, "half", None, {})
    assert get("slow") == (1.0, "slow", [0.25], {"part": 2.0})
    assert get("like") == (0.75, "like a score", None, {})


def test_what_hangs_or_leaves_scores_0(file) -> None:
    scores = scored(f"{file}:hang", rollout("hang"), rollout("go on"), time_limit=0.5)
    assert [score[:2] for score in scores] == [(0.0, "took longer than 0.5 s"), (1, "")]
    assert scored(f"{file}:leave", rollout("x"))[:2] == (0.0, "the worker process died (exit code 0)")


def test_what_it_raises_is_said_with_its_line(file) -> None:
    with pytest.raises(UnmaskError) as error:
        scored(f"{file}:fail", rollout("x"), of=example())
    line = FILE.splitlines().index("    return 1 / 0") + 1
    assert str(error.value) == f"example q: {file}:fail: raised ZeroDivisionError: division by zero ({file}:{line})"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (None, "gone.py:f", "reward gone.py:f: no such file"),
        ("x = 1", "f", "has no function f"),
        ("f = 1", "f", "has no function f"),
        ("x = (\ny = 3 +", "f", ":1: not valid Python ('(' was never closed)"),
        ("\nimport no_such_module", "f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_module' ("),
        ("raise SystemExit", "f", "a worker process did not start (exit code 0)"),
    ],
)
def test_what_cannot_be_used_is_said_at_the_start(tmp_path, text, name, message) -> None:
    if text is not None:
        (tmp_path / "own.py").write_text(text)
        name = f"{tmp_path / 'own.py'}:{name}"
    with pytest.raises(UnmaskError) as error:
        scored(name, rollout("x"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)

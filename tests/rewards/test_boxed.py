from __future__ import annotations

import pytest

from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.rewards import make_reward
from unmask.rewards.boxed import last_boxed
from unmask.types import Example, Rollout, Trace


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} no, \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} and \boxed{4", "3"),  # the last one with balanced braces
        (r"\boxed{}", ""),
        ("7", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "finish", "options", "expected"),
    [
        (r"\boxed{7}", "stop", {}, (1.0, "right")),
        (r"\boxed{ 7 }", "stop", {}, (1.0, "right")),
        (r"\boxed{8}", "stop", {}, (0.0, "boxed 8, expected 7")),
        (r"\boxed{8}", "stop", {"wrong_reward": 0.1}, (0.1, "boxed 8, expected 7")),
        ("7", "stop", {}, (0.0, "no boxed answer")),
        (r"\boxed{7}", "length", {}, (0.0, "cut at the length limit")),
        (r"\boxed{7}", "length", {"is_cut_wrong": False}, (1.0, "right")),
    ],
)
def test_boxed_reward(text, finish, options, expected) -> None:
    rollout = Rollout(Trace([], [1], [0], [0.0], [0.0], 1, 1, 1, finish), text)
    example = Example(id="0", messages=({"role": "user", "content": "?"},), answer="7")
    assert make_reward(Plugin(name="boxed", options=options))(rollout, example) == expected


@pytest.mark.parametrize("answer", [None, "", " "])
def test_an_empty_box_is_never_right(answer) -> None:
    rollout = Rollout(Trace([], [1], [0], [0.0], [0.0], 1, 1, 1, "stop"), r"\boxed{}")
    example = Example(id="0", messages=({"role": "user", "content": "?"},), answer=answer)
    assert make_reward(Plugin(name="boxed"))(rollout, example)[0] == 0.0


def test_unknown_reward() -> None:
    with pytest.raises(UnmaskError, match="unknown reward 'luck'; known: boxed"):
        make_reward(Plugin(name="luck"))

from __future__ import annotations

import pytest

from tests.rewards.responses import example, rollout, scored
from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.rewards import make_reward


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
        (" 7\n", "stop", {"compares": "whole"}, (1.0, "right")),
        (r"\boxed{7}", "stop", {"compares": "whole"}, (0.0, "response \\boxed{7}, expected 7")),
    ],
)
def test_exact_reward(text, finish, options, expected) -> None:
    assert scored("exact", rollout(text, finish), **options)[:2] == expected


def test_case_matters_unless_it_is_ignored() -> None:
    answers = [scored("exact", rollout("YES"), of=example("yes"), compares="whole", ignores_case=v) for v in (False, True)]
    assert [score.reward for score in answers] == [0.0, 1.0]


def test_an_empty_box_is_never_right() -> None:
    for answer in (None, "", " "):
        assert scored("exact", rollout(r"\boxed{}"), of=example(answer)).reward == 0.0


@pytest.mark.parametrize("name", ["exact", "math", "chained_steps"])
@pytest.mark.parametrize("answer", [None, "", " "])
def test_examples_without_an_answer_are_refused(name, answer) -> None:
    with pytest.raises(UnmaskError, match="example q: has no answer; the reward compares with one"):
        make_reward(Plugin(name=name)).check(example(answer))


def test_unknown_reward() -> None:
    with pytest.raises(UnmaskError, match="unknown reward 'luck'; known: math, code, exact"):
        make_reward(Plugin(name="luck"))

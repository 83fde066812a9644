"""Process rewards of chained arithmetic: which token gets how much."""

from __future__ import annotations

import pytest

from tests.rewards import responses
from unmask.config import Plugin
from unmask.data.chained_arithmetic import ChainedArithmetic
from unmask.errors import UnmaskError
from unmask.rewards import make_reward
from unmask.rewards.chained_steps import right_steps


def scored(pieces: list[str], question: str = "9+4-7*2=?", answer: str = "2", **options):
    of = responses.example(answer, question)
    make_reward(Plugin(name="chained_steps", options=options)).check(of)
    response = responses.rollout("".join(pieces), num_tokens=len(pieces), pieces=pieces)
    return responses.scored("chained_steps", response, of=of, **options)[:3]


def test_right_steps_are_those_of_a_clean_demonstration() -> None:
    for modulus in (3, 5, 10):
        source = ChainedArithmetic(ChainedArithmetic.Options(modulus=modulus), "train", 0)
        for i in range(50):
            steps = right_steps(source[i].messages[-1].content, modulus)
            assert source[i].response == "".join(f"{s};" for s in steps) + f"\\boxed{{{source[i].answer}}}"


def test_each_right_step_pays_on_the_token_that_ends_it() -> None:
    response = "9+4=3;3-7=6;6*2=2;\\boxed{2}"
    outcome, reason, tokens = scored([*response])
    assert (outcome, reason) == (1.0, "right; 3 of 3 steps right")
    paid = {i: t for i, t in enumerate(tokens) if t}
    assert paid == pytest.approx({4: 0.5 / 3, 10: 0.5 / 3, 16: 0.5 / 3})
    assert len(tokens) == len(response)
    _, _, coarse = scored(["9+4=3;3-", "7=6;6*2=", "2", ";\\boxed{", "2}"], steps_reward=0.9)
    assert coarse == pytest.approx([0.3, 0.3, 0.3, 0, 0])
    _, _, one = scored(["9+4=3;3-7=6;6*2=2;", "\\boxed{2}"])
    assert one == pytest.approx([0.5, 0])


@pytest.mark.parametrize(
    ("response", "num_right"),
    [
        ("9+4=3;3-7=5;6*2=2;\\boxed{2}", 1),  # nothing behind a wrong step, even if it is right again
        ("9+4=2;3-7=6;6*2=2;\\boxed{2}", 0),
        ("3-7=6;6*2=2;\\boxed{2}", 0),  # a step left out
        ("9+4=3;3-7=6;6*2=2;2+1=3;\\boxed{2}", 3),  # more than was asked
        ("\\boxed{2}", 0),
        ("", 0),
        ("9+4=", 0),
    ],
)
def test_up_to_the_first_wrong_step(response, num_right) -> None:
    outcome, reason, tokens = scored([*response])
    assert sum(tokens) == pytest.approx(0.5 * num_right / 3)
    assert reason.endswith(f"; {num_right} of 3 steps right")
    assert outcome == float("\\boxed{2}" in response)


def test_the_modulus_is_the_sources() -> None:
    assert scored([*"4+4=3;"], "4+4=?", "3", modulus=5)[2] == pytest.approx([0, 0, 0, 0, 0.5, 0])
    with pytest.raises(UnmaskError, match=r"example q: its steps end in 8 modulo 10, its answer is 3; reward.options.modulus"):
        scored([*"4+4=3;"], "4+4=?", "3")

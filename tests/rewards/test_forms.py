"""Rewards of form: format, length, and their weighted sums."""

from __future__ import annotations

import pytest

from tests.rewards.responses import example, rollout, scored
from unmask.config import Plugin
from unmask.errors import UnmaskError
from unmask.rewards import Reward, Score, make_reward
from unmask.rewards.weighted_sum import WeightedSum


@pytest.mark.parametrize(
    ("text", "options", "reward"),
    [
        ("a\nb", {"pattern": "a.b"}, 1.0),
        ("a\nb.", {"pattern": "a.b"}, 0.0),
        ("<think>hm</think> so \\boxed{7}", {"needs_think": True, "needs_boxed": True}, 1.0),
        ("<think>\\boxed{7}</think> so", {"needs_think": True, "needs_boxed": True}, 0.0),
        ("<think>\\boxed{7}</think> so", {"needs_think": True}, 1.0),
        ("<think> </think> so", {"needs_think": True}, 0.0),
        ("<think>hm</think>", {"needs_think": True}, 0.0),
        ("<think>a</think> b <think>c</think> d", {"needs_think": True}, 0.0),
        ("so <think>hm</think> so", {"needs_think": True}, 0.0),
        ("\\boxed{ }", {"needs_boxed": True}, 0.0),
        ("\\boxed{7}", {"needs_boxed": True, "pattern": "no"}, 0.0),
    ],
)
def test_format(text, options, reward) -> None:
    assert scored("format", rollout(text), **options).reward == reward


def test_the_prefix_in_the_prompt_is_part_of_the_turn() -> None:
    of = example(response_prefix="<think>\n")
    assert scored("format", rollout("hm</think> so"), of=of, needs_think=True).reward == 1.0
    assert scored("format", rollout("<think>hm</think> so"), of=of, needs_think=True).reward == 0.0
    assert scored("exact", rollout("7}"), of=example(response_prefix="It is \\boxed{")).reward == 1.0
    assert scored("exact", rollout("7"), of=example(response_prefix="It is "), compares="whole").reward == 1.0


@pytest.mark.parametrize(
    ("num_tokens", "one_at", "zero_at", "reward"),
    [(0, 10, 30, 1.0), (10, 10, 30, 1.0), (15, 10, 30, 0.75), (30, 10, 30, 0.0), (99, 10, 30, 0.0), (15, 30, 10, 0.25)],
)
def test_length(num_tokens, one_at, zero_at, reward) -> None:
    score = scored("length", rollout("", num_tokens=num_tokens), one_at=one_at, zero_at=zero_at)
    assert score[:2] == (reward, f"{num_tokens} tokens")


TERMS = [
    {"name": "exact", "weight": 2.0},
    {"name": "length", "weight": -0.5, "options": {"one_at": 10, "zero_at": 0}},
]


def test_weighted_sum() -> None:
    score = scored("weighted_sum", rollout("\\boxed{7}", num_tokens=5), terms=TERMS)
    assert score == (1.75, "exact 1 (right); length 0.5 (5 tokens)", None, {"exact": 1.0, "length": 0.5})


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (0.6, 0.3, 0.1), (0.1, 0.7, 0.2)])
def test_everything_right_is_1(weights) -> None:
    """And not 0.9999999999999999, which would be wrong in every accuracy."""
    names = [("exact", {}), ("format", {"needs_boxed": True}), ("length", {"one_at": 10, "zero_at": 30})]
    terms = [{"name": n, "weight": w, "options": o} for (n, o), w in zip(names, weights, strict=True)]
    assert scored("weighted_sum", rollout("\\boxed{7}"), terms=terms).reward == 1.0


class Tokens(Reward):
    """Pays 1 for the first response, 2 for the second, ..., once all of a group are there."""

    needs_pieces = True

    async def __call__(self, rollout, example):
        return Score(0.0, "", [1.0, 0.5], {"tries": 3.0})

    def finish_group(self, rollouts, scores):
        return [score._replace(reward=float(i)) for i, score in enumerate(scores, 1)]


def test_sums_of_token_rewards_parts_and_groups(monkeypatch) -> None:
    from unmask.rewards import REWARDS

    monkeypatch.setitem(REWARDS, "tokens", Tokens)
    monkeypatch.setitem(REWARDS, "others", type("Others", (Tokens,), {"finish_group": Reward.finish_group}))
    terms = [{"name": "tokens", "weight": 10.0}, {"name": "others", "weight": 0.1}, *TERMS]
    members = [rollout("\\boxed{7}", num_tokens=2), rollout("\\boxed{8}", num_tokens=2)]
    scores = scored("weighted_sum", *members, terms=terms)
    assert scores[0].token_rewards == pytest.approx([10.1, 5.05])
    assert scores[0].parts == {
        "tokens": 0.0, "tokens.tries": 3.0, "others": 0.0, "others.tries": 3.0, "exact": 1.0, "length": 0.2,
    }  # fmt: skip
    reward = make_reward(Plugin(name="weighted_sum", options={"terms": terms}))
    assert isinstance(reward, WeightedSum)
    assert reward.needs_pieces
    assert not make_reward(Plugin(name="weighted_sum", options={"terms": TERMS})).needs_pieces

    import asyncio

    async def group():
        return [await reward(member, example()) for member in members]

    finished = reward.finish_group(members, asyncio.run(group()))
    assert [score.parts["tokens"] for score in finished] == [1.0, 2.0]
    assert [score.reward for score in finished] == pytest.approx([10 + 2 - 0.1, 20 - 0.1])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("format", {}, "give at least one of pattern, needs_think and needs_boxed"),
        ("format", {"pattern": "("}, "reward.options: pattern: not a regular expression: missing ), unterminated subpattern"),
        ("length", {"one_at": 5, "zero_at": 5}, "one_at and zero_at should differ, both are 5"),
        ("length", {"one_at": 5}, "key 'zero_at' is missing"),
        ("weighted_sum", {"terms": []}, "reward.options: terms: "),
        ("weighted_sum", {"terms": [*TERMS, TERMS[0]]}, "exact is there twice; its sub-scores would have one name"),
        ("weighted_sum", {"terms": [{"name": "luck", "weight": 1.0}]}, "unknown reward.options.terms.0 'luck'; known: math"),
        (
            "weighted_sum", {"terms": [TERMS[0], {"name": "exact.py:f", "weight": 1.0, "options": {"limit": 1}}]},
            "reward.options.terms.1.options: unknown key 'limit'; the nearest known key is 'time_limit'",
        ),
    ],
)  # fmt: skip
def test_options_are_checked(name, options, message) -> None:
    with pytest.raises(UnmaskError) as error:
        make_reward(Plugin(name=name, options=options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_examples_are_checked_by_every_term() -> None:
    with pytest.raises(UnmaskError, match="example q: has no answer"):
        make_reward(Plugin(name="weighted_sum", options={"terms": TERMS})).check(example(None))
    make_reward(Plugin(name="length", options={"one_at": 1, "zero_at": 2})).check(example(None))
    make_reward(Plugin(name="format", options={"needs_boxed": True})).check(example(None))

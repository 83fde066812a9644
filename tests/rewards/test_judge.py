"""The judge against a small server that speaks the protocol, and chunk scores against arithmetic by hand."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tests.rewards.chat_server import Server
from tests.rewards.responses import rollout
from unmask import UnmaskError
from unmask.rewards.interface import Reward, Score
from unmask.rewards.judge import Judge, agreed, chunk_ends, place, standardise
from unmask.types import Example, Message

pytest.importorskip("openai", reason="the extra `judge` is not installed")

EXAMPLE = Example(id="q", messages=(Message(role="user", content="6*7?"),), answer="42")


class Outcome(Reward):
    async def __call__(self, rollout, example) -> Score:
        return Score(float("right" in rollout.text), "the outcome")


def judge(url: str, tmp_path, **options: object) -> Judge:
    options = {
        "base_url": url,
        "model": "m",
        "cache": str(tmp_path / "cache" / "judge.sqlite"),
        "outcome": {"name": "exact"},
    } | options
    made = Judge(Judge.Options(**options))
    if made.outcome is not None:
        made.outcome = Outcome(None)
    return made


def score(made: Judge, *rollouts) -> list[Score]:
    async def run() -> list[Score]:
        await made.start()
        try:
            return list(await asyncio.gather(*(made(rollout, EXAMPLE) for rollout in rollouts)))
        finally:
            await made.close()

    return asyncio.run(run())


def test_the_reward_is_the_mean_vote(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    says = ["I see \\boxed{0}, no: \\boxed{1}", "\\boxed{0}", "no verdict", "\\boxed{ 1.0 }"]
    with Server(lambda question, seed: says[seed]) as server:
        (got,) = score(judge(server.url, tmp_path, votes=4, api_key_env="MY_KEY"), rollout("It is {answer}."))
    assert got[:2] == (pytest.approx(2 / 3), "votes 1 0 1")
    request = server.requests[0]
    assert (request["path"], request["key"], request["model"]) == ("/v1/chat/completions", "Bearer secret", "m")
    question = request["messages"][-1]["content"]
    assert "6*7?" in question
    assert "\n42\n" in question
    assert "It is {answer}." in question  # what the response says is not filled in
    assert sorted(r["seed"] for r in server.requests) == [0, 1, 2, 3]


def test_votes_are_scaled_and_bounded(tmp_path) -> None:
    says = ["Score: 8", "Score: 25", "Score: -3"]
    with Server(lambda question, seed: says[seed]) as server:
        made = judge(server.url, tmp_path, verdict=r"Score: (-?\d+)", best_vote=10.0)
        (got,) = score(made, rollout("x"))
    assert got.reward == pytest.approx((0.8 + 1 + 0) / 3)


def test_answers_are_asked_for_once(tmp_path) -> None:
    with Server(lambda question, seed: "\\boxed{1}") as server:
        first = score(judge(server.url, tmp_path), rollout("a"), rollout("b"))
        assert len(server.requests) == 6
        assert score(judge(server.url, tmp_path), rollout("a"), rollout("b")) == first
        assert len(server.requests) == 6
        score(judge(server.url, tmp_path, temperature=0.5), rollout("a"))  # another question
        assert len(server.requests) == 9


BAD_REPLIES = [b"<html>", b"[]", b"null", b'{"choices": null}', b'{"choices": [{}]}', b'{"choices": "\xff"}']


@pytest.mark.parametrize("trouble", [429, 500, None, *BAD_REPLIES])
def test_trouble_is_retried(tmp_path, monkeypatch, trouble) -> None:
    monkeypatch.setattr("unmask.rewards.chat_endpoint._FIRST_PAUSE_S", 0.01)
    count = iter(range(100))
    with Server(lambda question, seed: trouble if next(count) < 2 else "\\boxed{1}") as server:
        (got,) = score(judge(server.url, tmp_path, votes=1), rollout("a"))
    assert (got.reward, len(server.requests)) == (1.0, 3)


def test_retries_count_for_the_budget_and_the_rate(tmp_path) -> None:
    with Server(lambda question, seed: 500) as server, pytest.raises(UnmaskError, match="max_requests is 3"):
        score(judge(server.url, tmp_path, votes=1, max_requests=3, requests_per_minute=1200.0), rollout("a"))
    assert len(server.requests) == 3
    assert server.times[-1] - server.times[0] > 2 * 0.05 * 0.8


def test_an_answer_that_comes_in_drops_is_too_late(tmp_path) -> None:
    late = r"no answer from the judge \(none within 0.3 s\)"
    with Server(lambda question, seed: b" " * 1000, pause=0.1) as server, pytest.raises(UnmaskError, match=late):
        score(judge(server.url, tmp_path, votes=1, timeout_s=0.3, max_retries=0), rollout("a"))


def test_equal_questions_at_the_same_time_are_asked_once(tmp_path) -> None:
    with Server(lambda question, seed: "\\boxed{1}") as server:
        got = score(judge(server.url, tmp_path), *[rollout("a")] * 8)
    assert len(server.requests) == 3
    assert len({s.reason for s in got}) == 1


def test_a_budget_of_tokens_needs_their_number(tmp_path) -> None:
    reply = b'{"choices": [{"message": {"content": "\\\\boxed{1}"}}]}'
    with Server(lambda question, seed: reply) as server:
        assert score(judge(server.url, tmp_path, votes=1), rollout("a"))[0].reward == 1.0
        with pytest.raises(UnmaskError, match="does not say how many tokens it used"):
            score(judge(server.url, tmp_path, votes=1, max_tokens=100), rollout("b"))


def test_a_verdict_that_is_no_number_is_none(tmp_path) -> None:
    says = ["Score: good", "Score: nan", "Score: ", "Score: 1"]
    with Server(lambda question, seed: says[seed]) as server:
        (got,) = score(judge(server.url, tmp_path, votes=4, verdict=r"Score: (\w*)"), rollout("a"))
    assert (got.reward, got.parts) == (1.0, {"verdicts": 1.0})


def test_no_answer_ends_the_run(tmp_path) -> None:
    """It is not a score of 0: the response is not at fault."""
    with Server(lambda question, seed: 500) as server:
        with pytest.raises(UnmaskError, match="no answer from the judge"):
            score(judge(server.url, tmp_path, max_retries=1, votes=1), rollout("a"))
        assert len(server.requests) == 2
    with pytest.raises(UnmaskError, match="no answer from the judge"):
        score(judge("http://127.0.0.1:9/v1", tmp_path, max_retries=0), rollout("a"))


@pytest.mark.parametrize(("limit", "value", "sent"), [("max_requests", 4, 4), ("max_tokens", 250, 3)])
def test_the_budget(tmp_path, limit: str, value: int, sent: int) -> None:
    with Server(lambda question, seed: "\\boxed{1}") as server:
        with pytest.raises(UnmaskError, match=f"{limit} is {value}"):
            score(judge(server.url, tmp_path, votes=6, max_concurrent=1, **{limit: value}), rollout("a"))
        assert len(server.requests) == sent
        score(judge(server.url, tmp_path, votes=sent), rollout("a"))
        assert len(server.requests) == sent  # what was paid for is kept


def test_rate_and_number_at_a_time(tmp_path) -> None:
    with Server(lambda question, seed: "\\boxed{1}") as server:
        score(judge(server.url, tmp_path, votes=12, max_concurrent=2), rollout("a"))
        assert server.most_at_once == 2
        server.times.clear()
        score(judge(server.url, tmp_path, votes=5, requests_per_minute=1200.0), rollout("b"))
    assert server.times[-1] - server.times[0] > 4 * 0.05 * 0.8


def test_chunks(tmp_path) -> None:
    """Two chunks and a rest of a response: votes that agree count, others are replaced by the outcome; each score is on the
    token of its chunk that was unmasked last."""
    pieces = ["a", "b", "c", "d", "right"]
    step_map = [3, 1, 0, 0, 2]

    def answer(question: str, seed: int) -> str:
        chunk = question.split("part to judge:\n")[1].split("\n\n")[0]
        return {"ab": "\\boxed{0}", "cd": f"\\boxed{{{seed % 2}}}", "right": "\\boxed{1}"}[chunk]

    with Server(answer) as server:
        (got,) = score(judge(server.url, tmp_path, chunk_tokens=2), rollout("abcdright", pieces=pieces, step_map=step_map))
    assert got.reward == 1.0
    assert got.token_rewards == [0.0, 0.0, 0.0, 1.0, 1.0]  # 0 at token 0; the outcome, 1, at token 3; 1 at token 4
    assert got.reason == "the outcome; votes 0 0 0; 0 1 0; 1 1 1"
    befores = {r["messages"][-1]["content"].split("so far:\n")[1].split("\n\n")[0] for r in server.requests}
    assert befores == {"(nothing)", "ab", "abcd"}


def test_chunks_are_standardised_over_the_group(tmp_path) -> None:
    made = judge("http://unused/v1", tmp_path, chunk_tokens=2)
    rollouts = [rollout("", pieces=["x"] * n, step_map=range(n)) for n in (4, 3, 2)]
    scores = [Score(1.0, "", [0.0, 1.0, 0.0, 0.5]), Score(0.0, "", [0.0, 0.0, 1.0]), Score(0.0, "", [0.0, 0.5])]
    got = [s.token_rewards for s in made.finish_group(rollouts, scores)]
    first = (np.array([1.0, 0.0, 0.5]) - 0.5) / np.std([1.0, 0.0, 0.5])
    expected = [[0.0, first[0], 0.0, -1.0], [0.0, first[1], 1.0], [0.0, first[2]]]
    assert [pytest.approx(row) for row in expected] == got


def test_arithmetic_of_chunks() -> None:
    assert (chunk_ends(5, 2), chunk_ends(4, 2), chunk_ends(0, 2)) == ([2, 4, 5], [2, 4], [])
    assert agreed([1, 1, 0], 3, 2 / 3, 0.25) == 1
    assert agreed([1, 1, 0], 3, 1.0, 0.25) == 0.25
    assert agreed([1, 1], 3, 1.0, 0.25) == 0.25  # one vote had no verdict
    assert agreed([], 3, 0.6, 0.25) == 0.25
    assert place([5.0, 7.0], [3, 4], [1, 1, 0, 9]) == [0.0, 5.0, 0.0, 7.0]
    assert standardise([[1.0], [1.0], []]) == [[0.0], [0.0], []]


@pytest.mark.parametrize("options", [{"verdict": "no group"}, {"verdict": "("}, {"votes": 0}, {"agreement": 0.5}])
def test_bad_options(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Judge.Options(base_url="x", model="m", **options)


def test_a_cache_that_is_none(tmp_path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(UnmaskError, match="cannot be used as the judge's cache"):
        score(judge("http://unused/v1", tmp_path), rollout("a"))

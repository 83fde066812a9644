"""A model as the judge: of whole responses, or of their chunks, as process rewards.

With `chunk_tokens`, a response is cut into chunks of so many tokens, and the judge says of each, several times, how good it is
given what stands before it. Where the votes agree, the chunk's score is theirs, else it is the response's outcome. Scores are
standardised over the group for each chunk index, and sit on the chunk's last unmasking step (arXiv 2509.06949, section 4).
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from unmask.config import Plugin
from unmask.rewards.chat_endpoint import ChatEndpoint, EndpointOptions
from unmask.rewards.interface import Reward, Score
from unmask.types import Example, Rollout

_WHOLE = """Judge the answer to a question.

Question:
{question}

Reference answer:
{answer}

Answer to judge:
{response}

Is the answer right? Think briefly, then end with \\boxed{1} if it is and \\boxed{0} if it is not."""
_CHUNK = """Judge one part of a solution.

Question:
{question}

The solution so far:
{before}

The part to judge:
{chunk}

Is this part right and useful, given what stands before it? It may begin or end within a sentence. Think briefly, then end with
\\boxed{1} if it is and \\boxed{0} if it is not."""
_NO_VARIANCE = 1e-6


class Judge(Reward):
    """With `chunk_tokens` 0, the reward is the mean vote on the whole response; else it is the outcome's, and the votes are
    process rewards for the value model."""

    class Options(EndpointOptions):
        chunk_tokens: int = Field(
            0, ge=0, description="tokens of a chunk (the paper: 200); 0 = the response is judged as a whole"
        )
        votes: int = Field(3, ge=1, le=64, description="answers of the judge to each question")
        agreement: float = Field(1.0, gt=0.5, le=1, description="share of equal votes from which on a chunk's votes count")
        outcome: Plugin = Field(
            default_factory=lambda: Plugin(name="math"), description="with chunk_tokens: the reward of the whole response"
        )
        prompt: str = Field(
            "",
            description="the question to the judge; in it {question}, {answer}, {response}, {before} and {chunk} are replaced; "
            "empty = a simple one",
        )
        verdict: str = Field(
            r"\\boxed\{\s*(-?[0-9]+(?:\.[0-9]+)?)\s*\}",
            description="regular expression; the group of its last match is the vote, a number",
        )
        best_vote: float = Field(1.0, gt=0, description="votes are divided by it")

        @field_validator("verdict")
        @classmethod
        def _one_group(cls, value: str) -> str:
            try:
                num_groups = re.compile(value).groups
            except re.error as error:
                raise ValueError(f"should be a regular expression ({error})") from None
            if num_groups != 1:
                raise ValueError(f"should have one group, the vote; it has {num_groups}")
            return value

    def __init__(self, options: Any):
        super().__init__(options)
        self.endpoint = ChatEndpoint(options)
        self.needs_pieces = options.chunk_tokens > 0
        self.outcome: Reward | None = None
        if options.chunk_tokens:
            from unmask.rewards import make_reward

            self.outcome = make_reward(options.outcome)

    def check(self, example: Example) -> None:
        if self.outcome is not None:
            self.outcome.check(example)

    async def start(self) -> None:
        await self.endpoint.start()
        if self.outcome is not None:
            await self.outcome.start()

    async def close(self) -> None:
        await self.endpoint.close()
        if self.outcome is not None:
            await self.outcome.close()

    def provenance(self) -> dict[str, str]:
        of_outcome = {} if self.outcome is None else self.outcome.provenance()
        return {f"outcome.{name}": value for name, value in of_outcome.items()}

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        if self.outcome is None:
            votes = await self._votes(self._question(_WHOLE, rollout, example))
            if not votes:
                return Score(0.0, "none of the judge's answers has a verdict", parts={"verdicts": 0.0})
            return Score(float(np.mean(votes)), f"votes {_show(votes)}", parts={"verdicts": float(len(votes))})
        outcome = await self.outcome(rollout, example)
        ends = chunk_ends(len(rollout.pieces), self.options.chunk_tokens)
        questions, begin = [], 0
        for end in ends:
            before, chunk = "".join(rollout.pieces[:begin]), "".join(rollout.pieces[begin:end])
            questions.append(self._question(_CHUNK, rollout, example, before, chunk))
            begin = end
        every = await asyncio.gather(*map(self._votes, questions))
        scores = [agreed(votes, self.options.votes, self.options.agreement, outcome.reward) for votes in every]
        rewards = place(scores, ends, rollout.trace.step_map)
        shown = "; ".join(map(_show, every))
        return Score(outcome.reward, f"{outcome.reason}; votes {shown}", rewards, {**outcome.parts, "outcome": outcome.reward})

    def finish_group(self, rollouts: Sequence[Rollout], scores: Sequence[Score]) -> list[Score]:
        if self.outcome is None:
            return list(scores)
        ends = [chunk_ends(len(rollout.pieces), self.options.chunk_tokens) for rollout in rollouts]
        given = [
            [sum(score.token_rewards[begin:end]) for begin, end in zip([0, *those], those, strict=False)]
            for score, those in zip(scores, ends, strict=True)
            if score.token_rewards is not None
        ]
        return [
            score._replace(token_rewards=place(standard, those, rollout.trace.step_map))
            for score, standard, those, rollout in zip(scores, standardise(given), ends, rollouts, strict=True)
        ]

    def _question(self, default: str, rollout: Rollout, example: Example, before: str = "", chunk: str = "") -> str:
        words = {
            "question": example.messages[-1].content, "answer": example.answer or "(none)", "response": rollout.text,
            "before": before or "(nothing)", "chunk": chunk,
        }  # fmt: skip
        # One pass: a response that contains "{answer}" is not asked to be replaced.
        return re.sub(r"\{(question|answer|response|before|chunk)\}", lambda m: words[m[1]], self.options.prompt or default)

    async def _votes(self, question: str) -> list[float]:
        """Those of its answers that have a verdict, between 0 and 1."""
        messages = [{"role": "user", "content": question}]
        answers = await asyncio.gather(*(self.endpoint.ask(messages, number) for number in range(self.options.votes)))
        found = [_number(re.findall(self.options.verdict, answer)) for answer in answers]
        return [min(1.0, max(0.0, vote / self.options.best_vote)) for vote in found if vote is not None]


def chunk_ends(num_tokens: int, chunk_tokens: int) -> list[int]:
    """Where the chunks of a response end; the last may be shorter."""
    return [min(begin + chunk_tokens, num_tokens) for begin in range(0, num_tokens, chunk_tokens)]


def agreed(votes: Sequence[float], num_asked: int, agreement: float, outcome: float) -> float:
    """The vote that at least the share `agreement` of those asked gave, else the outcome."""
    if votes:
        vote, count = Counter(votes).most_common(1)[0]
        if count >= agreement * num_asked:
            return vote
    return outcome


def place(scores: Sequence[float], ends: Sequence[int], step_map: Sequence[int]) -> list[float]:
    """One reward per response token: each chunk's score on the token of it that was unmasked last (of several, the last)."""
    rewards = [0.0] * (ends[-1] if ends else 0)
    for score, begin, end in zip(scores, [0, *ends], ends, strict=False):
        rewards[max(range(begin, end), key=lambda i: (step_map[i], i))] = score
    return rewards


def standardise(scores: Sequence[Sequence[float]]) -> list[list[float]]:
    """For each chunk index, over the responses that have one: less their mean, over their (population) standard deviation; 0
    where they do not differ."""
    result = [[0.0] * len(row) for row in scores]
    for index in range(max(map(len, scores), default=0)):
        rows = [i for i, row in enumerate(scores) if index < len(row)]
        values = np.array([scores[i][index] for i in rows])
        deviation = values.std()
        for i, value in zip(rows, values - values.mean(), strict=True):
            result[i][index] = float(value / deviation) if deviation > _NO_VARIANCE else 0.0
    return result


def _number(verdicts: Sequence[str]) -> float | None:
    """The last of them; None where there is none, or it is no finite number."""
    try:
        vote = float(verdicts[-1])
    except (IndexError, ValueError):
        return None
    return vote if math.isfinite(vote) else None


def _show(votes: Sequence[float]) -> str:
    return " ".join(f"{vote:g}" for vote in votes) or "none"

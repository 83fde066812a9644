"""Process rewards for chained arithmetic: the outcome as `exact` scores it, and something for every right step on the way."""

from __future__ import annotations

import itertools
import operator
import re

import numpy as np
from pydantic import Field

from unmask.errors import UnmaskError
from unmask.rewards.exact import Exact
from unmask.rewards.interface import Reward, RewardOptions, Score, require_answer
from unmask.types import Example, Rollout

_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def right_steps(question: str, modulus: int) -> list[str]:
    """The steps `a+b=c` that a question of the source `chained_arithmetic` asks for, in order."""
    value, steps = int(question[0]), []
    for sign, term in re.findall(r"([-+*])(\d)", question):
        result = _OPERATIONS[sign](value, int(term)) % modulus
        steps.append(f"{value}{sign}{term}={result}")
        value = result
    return steps


class ChainedSteps(Reward):
    """Every right step, up to the first that is wrong, gets an equal share of `steps_reward`, on the token that ends it."""

    needs_pieces = True

    class Options(RewardOptions):
        steps_reward: float = Field(0.5, ge=0, description="of a response whose steps are all right, beside its outcome")
        modulus: int = Field(10, ge=2, le=10, description="the source's")

    def __init__(self, options: ChainedSteps.Options):
        super().__init__(options)
        self.outcome = Exact(Exact.Options())

    def check(self, example: Example) -> None:
        """Raises `UnmaskError` where the answer is not that of the question under the modulus."""
        require_answer(example)
        question = example.messages[-1].content
        if not re.fullmatch(r"\d([-+*]\d)+=\?", question):
            raise UnmaskError(f"example {example.id}: {question[:40]!r} is no question of chained_arithmetic, as 9+4-7=? is")
        last = right_steps(question, self.options.modulus)[-1][-1]
        if last != example.answer:
            raise UnmaskError(
                f"example {example.id}: its steps end in {last} modulo {self.options.modulus}, its answer is "
                f"{example.answer}; reward.options.modulus should be the source's"
            )

    async def __call__(self, rollout: Rollout, example: Example) -> Score:
        outcome = await self.outcome(rollout, example)
        wanted = right_steps(example.messages[-1].content, self.options.modulus)
        written = re.finditer(r"\d[-+*]\d=\d", "".join(rollout.pieces))
        right = list(itertools.takewhile(lambda pair: pair[0][0] == pair[1], zip(written, wanted, strict=False)))
        ends = list(itertools.accumulate(map(len, rollout.pieces)))  # of each token, in characters
        token_rewards = [0.0] * len(rollout.pieces)
        for step, _ in right:
            token_rewards[int(np.searchsorted(ends, step.end()))] += self.options.steps_reward / len(wanted)
        reason = f"{outcome.reason}; {len(right)} of {len(wanted)} steps right"
        return Score(outcome.reward, reason, token_rewards, {"steps": len(right) / len(wanted)})

"""Process rewards for chained arithmetic: the outcome as `boxed` scores it, and something for every right step on the way."""

from __future__ import annotations

import itertools
import operator
import re

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unmask.errors import UnmaskError
from unmask.rewards.boxed import Boxed
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


class ChainedSteps:
    """Every right step, up to the first that is wrong, gets an equal share of `steps_reward`, on the token that ends it."""

    needs_pieces = True

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        steps_reward: float = Field(0.5, ge=0, description="of a response whose steps are all right, beside its outcome")
        modulus: int = Field(10, ge=2, le=10, description="the source's")

    def __init__(self, options: Options):
        self.options = options
        self.outcome = Boxed(Boxed.Options())

    def __call__(self, rollout: Rollout, example: Example) -> tuple[float, str, list[float]]:
        """Raises `UnmaskError` where the example's answer is not that of its question under the modulus."""
        outcome, reason = self.outcome(rollout, example)
        question = example.messages[-1].content
        if not re.fullmatch(r"\d([-+*]\d)+=\?", question):
            raise UnmaskError(f"example {example.id}: {question[:40]!r} is no question of chained_arithmetic, as 9+4-7=? is")
        wanted = right_steps(question, self.options.modulus)
        if wanted[-1][-1] != example.answer:
            raise UnmaskError(
                f"example {example.id}: its steps end in {wanted[-1][-1]} modulo {self.options.modulus}, its answer is "
                f"{example.answer}; reward.options.modulus should be the source's"
            )
        written = re.finditer(r"\d[-+*]\d=\d", "".join(rollout.pieces))
        right = list(itertools.takewhile(lambda pair: pair[0][0] == pair[1], zip(written, wanted, strict=False)))
        ends = list(itertools.accumulate(map(len, rollout.pieces)))  # of each token, in characters
        token_rewards = [0.0] * len(rollout.pieces)
        for step, _ in right:
            token_rewards[int(np.searchsorted(ends, step.end()))] += self.options.steps_reward / len(wanted)
        return outcome, f"{reason}; {len(right)} of {len(wanted)} steps right", token_rewards

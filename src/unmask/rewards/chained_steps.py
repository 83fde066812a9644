"""Process rewards for chained arithmetic: the outcome as `boxed` scores it, and something for every right step on the way."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from unmask.rewards.boxed import Boxed
from unmask.types import Example, Rollout

_COMPUTE = {"+": lambda a, b: (a + b) % 10, "-": lambda a, b: (a - b) % 10, "*": lambda a, b: (a * b) % 10}


def right_steps(question: str) -> list[str]:
    """The steps `a+b=c` that a question of the source `chained_arithmetic` asks for, in order."""
    value, rest = int(question[0]), re.findall(r"([-+*])(\d)", question)
    steps = []
    for sign, term in rest:
        result = _COMPUTE[sign](value, int(term))
        steps.append(f"{value}{sign}{term}={result}")
        value = result
    return steps


class ChainedSteps:
    """The last token of every right step, up to the first wrong one, gets an equal share of `steps_reward`."""

    needs_pieces = True

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        steps_reward: float = Field(0.5, ge=0, description="of a response whose steps are all right, beside its outcome")

    def __init__(self, options: Options):
        self.options = options
        self.outcome = Boxed(Boxed.Options())

    def __call__(self, rollout: Rollout, example: Example) -> tuple[float, str, list[float]]:
        outcome, reason = self.outcome(rollout, example)
        wanted = right_steps(example.messages[-1].content)
        token_rewards = [0.0] * len(rollout.pieces)
        written, num_right = "", 0
        for i, piece in enumerate(rollout.pieces):
            written += piece
            if num_right < len(wanted) and written.endswith("="):
                if not written.endswith(wanted[num_right][:-1]):
                    break
            elif num_right < len(wanted) and written[:-1].endswith("="):
                if not written.endswith(wanted[num_right]):
                    break
                token_rewards[i] = self.options.steps_reward / len(wanted)
                num_right += 1
        return outcome, f"{reason}; {num_right} of {len(wanted)} steps right", token_rewards

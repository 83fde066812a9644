"""A task that a tiny model learns in minutes: chained arithmetic modulo 10 (or less), one written step per operation.

Question `9+4-7=?`, worked from left to right; answer `9+4=3;3-7=6;\\boxed{6}`. The answer is verifiable, the reasoning
is visible. Demonstrations may be those of a sloppy teacher: with `slip_rate`, a step's result is drawn at random and the
error carried on; with `terse_rate`, a demonstration skips the steps and boxes the right answer at once. A tiny model cannot
compute several steps in its head, so one trained on such demonstrations knows the task but samples slips and guesses:
something for RL to remove.
"""

from __future__ import annotations

import hashlib
import random
import re
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from unmask.data.digests import hash_examples
from unmask.errors import UnmaskError
from unmask.types import Example, Message

HELD_OUT_SHARE = 8  # one question in 8 is held out, by a hash of its text: the splits are disjoint by construction
_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def is_held_out(question: str) -> bool:
    return hashlib.blake2b(question.encode(), digest_size=4).digest()[0] % HELD_OUT_SHARE == 0


def count_steps(response: str, modulus: int = 10) -> tuple[int, int]:
    """(written steps, those whose result is wrong) of a response; what is not a step `a+b=c` counts as neither."""
    steps = re.findall(r"(\d)([-+*])(\d)=(\d)", response)
    return len(steps), sum(_OPERATIONS[sign](int(a), int(b)) % modulus != int(c) for a, sign, b, c in steps)


class ChainedArithmetic:
    """An indexable source: example i is a pure function of (seed, split, i) and the options."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        size: int = Field(100_000, ge=1, description="examples per epoch")
        min_operations: int = Field(4, ge=1, le=20, description="operations in the shortest question")
        max_operations: int = Field(6, ge=1, le=20, description="operations in the longest question")
        modulus: int = Field(10, ge=2, le=10, description="digits are smaller than this; the smaller, the sooner it is learned")
        slip_rate: float = Field(0.0, ge=0, le=1, description="share of steps with a random result in demonstrations")
        terse_rate: float = Field(0.0, ge=0, le=1, description="share of demonstrations without the steps")

    vocabulary = (*"0123456789+-*=;?", "\\boxed{", "}")  # all a tokenizer needs for this task
    dataset_hash = property(hash_examples)

    def __init__(self, options: Options, split: Literal["train", "held_out"], seed: int):
        if options.min_operations > options.max_operations:
            raise UnmaskError(
                f"source.options.min_operations {options.min_operations} is above max_operations {options.max_operations}"
            )
        self.options, self.split, self.seed = options, split, seed

    def __len__(self) -> int:
        return self.options.size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        o, rng = self.options, random.Random(f"{self.seed}/{self.split}/{index}")
        while True:
            count = rng.randint(o.min_operations, o.max_operations)
            terms = [rng.randrange(o.modulus) for _ in range(count + 1)]
            signs = [rng.choice("+-*") for _ in range(count)]
            question = str(terms[0]) + "".join(f"{s}{t}" for s, t in zip(signs, terms[1:], strict=True)) + "=?"
            if is_held_out(question) == (self.split == "held_out"):
                break
        written = true = terms[0]
        steps = []
        for sign, term in zip(signs, terms[1:], strict=True):
            true = _OPERATIONS[sign](true, term) % o.modulus
            result = rng.randrange(o.modulus) if rng.random() < o.slip_rate else _OPERATIONS[sign](written, term) % o.modulus
            steps.append(f"{written}{sign}{term}={result};")
            written = result
        is_terse = rng.random() < o.terse_rate
        return Example(
            id=f"{self.split}-{index}",
            messages=(Message(role="user", content=question),),
            response=f"\\boxed{{{true}}}" if is_terse else "".join(steps) + f"\\boxed{{{written}}}",
            answer=str(true),
        )

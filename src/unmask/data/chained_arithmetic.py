"""A task that a tiny model learns in minutes: chained arithmetic modulo 10, one written step per operation.

Question `9+4-7=?`, worked from left to right; answer `9+4=3;3-7=6;\\boxed{6}`. The answer is verifiable, the reasoning
is visible, and a demonstration may slip: with `slip_rate`, a step's result is drawn at random and the error carried on.
A model trained on sloppy demonstrations knows the task but samples its slips: something for RL to remove.
"""

from __future__ import annotations

import hashlib
import random
from typing import Annotated, Literal

from pydantic import Field, validate_call

from unmask.types import Example

HELD_OUT_SHARE = 8  # one question in 8 is held out, by a hash of its text: the splits are disjoint by construction
TASK_TOKENS = (*"0123456789+-*=;?", "\\boxed{", "}")
_OPERATIONS = {"+": lambda a, b: (a + b) % 10, "-": lambda a, b: (a - b) % 10, "*": lambda a, b: (a * b) % 10}


def is_held_out(question: str) -> bool:
    return hashlib.blake2b(question.encode(), digest_size=4).digest()[0] % HELD_OUT_SHARE == 0


class ChainedArithmetic:
    """An indexable source: example i is a pure function of (seed, split, i) and the options."""

    @validate_call
    def __init__(
        self,
        split: Literal["train", "held_out"],
        seed: int,
        *,
        size: Annotated[int, Field(ge=1)] = 100_000,
        min_operations: Annotated[int, Field(ge=1, le=20)] = 4,
        max_operations: Annotated[int, Field(ge=1, le=20)] = 6,
        slip_rate: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ):
        self.split, self.seed, self.size = split, seed, size
        self.operations, self.slip_rate = (min_operations, max_operations), slip_rate

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = random.Random(f"{self.seed}/{self.split}/{index}")
        while True:
            count = rng.randint(*self.operations)
            terms = [rng.randrange(10) for _ in range(count + 1)]
            signs = [rng.choice("+-*") for _ in range(count)]
            question = str(terms[0]) + "".join(f"{s}{t}" for s, t in zip(signs, terms[1:], strict=True)) + "=?"
            if is_held_out(question) == (self.split == "held_out"):
                break
        written = true = terms[0]
        steps = []
        for sign, term in zip(signs, terms[1:], strict=True):
            true = _OPERATIONS[sign](true, term)
            result = rng.randrange(10) if rng.random() < self.slip_rate else _OPERATIONS[sign](written, term)
            steps.append(f"{written}{sign}{term}={result};")
            written = result
        return Example(
            id=f"{self.split}-{index}",
            messages=({"role": "user", "content": question},),
            response="".join(steps) + f"\\boxed{{{written}}}",
            answer=str(true),
        )

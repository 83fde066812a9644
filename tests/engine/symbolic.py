"""A runner without tensors: pages hold what their keys and values would be computed from, tokens follow from the seed.

It shows for every forward that each request finds in its pages exactly what it had computed, or somebody else from the
same tokens. Thousands of workloads take seconds.
"""

from __future__ import annotations

import random

import numpy as np

from unmask.diffusion.sequence import DecodingSequence
from unmask.engine import Engine
from unmask.engine.scheduler import Plan


def fingerprint(sequence: DecodingSequence, position: int) -> tuple:
    """What the keys and values of a position in a finished block depend on: the grid and all tokens up to its block's end."""
    b = sequence.block_size
    return (b, position, sequence.ids[: (position // b + 1) * b].tobytes())


class SymbolicResult:
    """A step's outcome as a pure function of seed, step and position."""

    def fetch(self, num_rows: int) -> list[SymbolicResult]:
        return [self] * num_rows

    def apply(self, sequence: DecodingSequence) -> bool:
        return advance(sequence)


def advance(s: DecodingSequence) -> bool:
    g = random.Random(s.params.seed * 1009 + s.step)
    num = min(len(s.masked), max(s.quota(), g.choice([0, 1, 1, 2, len(s.masked)])))
    positions = np.array(sorted(g.sample(s.masked.tolist(), num)), dtype=np.int64)
    ids = np.array([3 + (s.params.seed * 31 + int(p) * 7) % 37 for p in positions], dtype=np.int64)
    return s.unmask(positions, ids, np.full(num, -0.5), np.full(num, 0.5))


class SymbolicRunner:
    """Takes the place of `Engine.runner`."""

    def __init__(self, engine: Engine):
        self.engine, self.content = engine, {}
        self.page_size = engine.scheduler.pool.page_size

    def clear(self) -> None:
        self.content.clear()

    def run(self, plan: Plan) -> SymbolicResult | None:
        before = dict(self.content)
        for source, target in plan.copies:
            for i in range(self.page_size):
                self.content[target, i] = before.get((source, i))
        used: dict[int, list] = {}
        for row in plan.rows:
            request, s = row.request, row.request.sequence
            for page in set(request.pages):
                used.setdefault(page, []).append(request)
            if not request.uses_pages:
                continue
            assert len(set(request.pages)) == len(request.pages)
            assert len(request.pages) * self.page_size >= row.key_end, "not all it sees is in its pages"
            for position in range(row.query_start):
                found = self.content.get((request.pages[position // self.page_size], position % self.page_size))
                assert found == fingerprint(s, position), f"position {position} of request {request.id}"
            for position in range(row.query_start, row.query_end):
                page = request.pages[position // self.page_size]
                self.content[page, position % self.page_size] = fingerprint(s, position)
        for page, owners in used.items():
            assert self.engine.scheduler.pool._num_users[page] >= len(owners)
        running = self.engine.scheduler.running
        assert len({r.slot for r in running}) == len(running)
        return SymbolicResult() if any(row.is_denoising for row in plan.rows) else None


def symbolic_engine(model, **limits) -> Engine:
    engine = Engine(model, **limits)
    engine.runner = SymbolicRunner(engine)
    return engine

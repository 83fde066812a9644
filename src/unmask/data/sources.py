"""Where examples come from: the registry of sources, and the seeded order in which training walks through one."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from unmask.config import Plugin, make_plugin
from unmask.data.chained_arithmetic import ChainedArithmetic
from unmask.data.jsonl import JsonlSource
from unmask.data.rows import Split
from unmask.data.tasks import TASKS
from unmask.data.traces import TraceSource
from unmask.types import Example


class Source(Protocol):
    """An indexable collection of examples. The train and held-out splits of a source are disjoint."""

    vocabulary: tuple[str, ...] | None  # tokens that suffice for a tokenizer of its own; None = free text
    dataset_hash: Any  # text: `hash_examples` of all its examples

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...


SOURCES: dict[str, Any] = {"chained_arithmetic": ChainedArithmetic, "jsonl": JsonlSource, "traces": TraceSource, **TASKS}


def open_source(plugin: Plugin, split: Split, seed: int) -> Source:
    """Raises `UnmaskError` for an unknown name or option, or bad data."""
    return make_plugin(SOURCES, plugin, "source", split, seed)


class EpochOrder:
    """Sample number n of training -> (index in the source, epoch): each epoch a seeded permutation, no replacement.

    Stateless: the position in the data is the number of samples drawn so far.
    """

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self._epoch, self._permutation = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, number: int) -> tuple[int, int]:
        epoch, offset = divmod(number, self.size)
        if epoch != self._epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self._epoch, self._permutation = epoch, generator.permutation(self.size)
        return int(self._permutation[offset]), epoch

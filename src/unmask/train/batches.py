"""Which demonstrations a step trains on: those of its place in the seeded order, or of a bucket of similar lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from unmask.config.training import SftTrainConfig
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import EpochOrder, Source
from unmask.train.demonstrations import Lengths, demonstration
from unmask.types import Demonstration


class Batches:
    """Step number -> its demonstrations, and how many were too long. A pure function of the seed and the step.

    With `train.num_bucket_steps`, so many steps (a window) share their demonstrations: these are sorted by length (ties: by
    their place in the order) and cut into batches, whose order is drawn. Too long ones are divided among the window's steps, so
    that batches are equally large. A window is tokenised once and kept until the next one.
    """

    def __init__(
        self, config: SftTrainConfig, source: Source, tokenizer: ChatTokenizer, seed: int, say: Callable[[str], None]
    ):  # fmt: skip
        self.config, self.source, self.tokenizer, self.seed = config, source, tokenizer, seed
        self._order, self._lengths = EpochOrder(len(source), seed), Lengths(config, source, say)
        self._window, self._batches = -1, list[tuple[list[Demonstration], int]]()

    def __getitem__(self, step: int) -> tuple[list[Demonstration], int]:
        """Raises `UnmaskError` for what `Lengths` and `demonstration` refuse."""
        if not self.config.num_bucket_steps:
            return self._take(step, 1)
        window, index = divmod(step, self.config.num_bucket_steps)
        if window != self._window:
            self._batches, self._window = self._bucket(window), window
        items, num_too_long = self._batches[index]
        first = step * self.config.batch_size
        return [replace(item, place=first + i) for i, item in enumerate(items)], num_too_long

    def _take(self, first_step: int, num_steps: int) -> tuple[list[Demonstration], int]:
        """Those of some steps, in the seeded order."""
        size = self.config.batch_size
        places = range(first_step * size, (first_step + num_steps) * size)
        return self._lengths.fit([demonstration(self.source, self.tokenizer, *self._order[n], n) for n in places])

    def _bucket(self, window: int) -> list[tuple[list[Demonstration], int]]:
        num_steps = self.config.num_bucket_steps
        items, num_too_long = self._take(window * num_steps, num_steps)
        by_length = np.argsort([len(item.prompt_ids) + len(item.response_ids) for item in items], kind="stable")
        parts = np.array_split(by_length, num_steps), np.array_split(np.arange(num_too_long), num_steps)
        batches = [([items[i] for i in part], len(long)) for part, long in zip(*parts, strict=True)]
        # The counter keeps clear of the stream that epochs are drawn from, whose key is of the same form.
        generator = np.random.Generator(np.random.Philox(key=[self.seed, window], counter=[0, 0, 0, 1]))
        return [batches[i] for i in generator.permutation(num_steps)]

"""From examples to demonstrations: tokenised, with their order, no longer than they may be."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from unmask.config.training import SftTrainConfig
from unmask.data.chat import ChatTokenizer
from unmask.data.sources import Source
from unmask.errors import UnmaskError
from unmask.types import Demonstration, Example

_NUM_NAMED = 5


def demonstration(source: Source, tokenizer: ChatTokenizer, index: int, epoch: int, place: int = 0) -> Demonstration:
    example = source[index]
    named: dict[str, Any] = {"key": sample_key(example), "epoch": epoch, "place": place, "name": example.id}
    if (trace := example.trace) is not None:
        return Demonstration(**named, prompt_ids=trace.prompt_ids, response_ids=trace.response_ids, trace=trace)
    if example.response is None:
        raise UnmaskError(f"example {example.id}: has no response; supervised fine-tuning needs demonstrations")
    prompt_ids, response_ids = tokenizer.prompt_ids(example), tokenizer.response_ids(example)
    steps = None if example.step_map is None else fit_steps(example.step_map, response_ids, example.id)
    return Demonstration(**named, prompt_ids=prompt_ids, response_ids=response_ids, step_map=steps)


def sample_key(example: Example) -> int:
    """63 bits that name an example in the random numbers: of its id, and of recorded traces also of what was decoded, as
    several traces of one question have its id."""
    name = example.id if example.trace is None else f"{example.id} {example.trace.canvas_ids}"
    return int.from_bytes(hashlib.blake2b(name.encode(errors="replace"), digest_size=8).digest()) >> 1


def fit_steps(step_map: Sequence[int], response_ids: Sequence[int], name: str) -> list[int]:
    """One step for each token; where the end of the turn has none, it comes after all others. Raises `UnmaskError`."""
    if len(step_map) == len(response_ids) - 1:
        return [*step_map, max(step_map, default=-1) + 1]
    if len(step_map) != len(response_ids):
        raise UnmaskError(
            f"example {name}: step_map has {len(step_map)} steps, but the response {len(response_ids) - 1} tokens in this "
            "tokenizer, and one that ends the turn"
        )
    return list(step_map)


class Lengths:
    """What is longer than `train.max_length`: left out, cut, or the end of the run; the first ones are named."""

    def __init__(self, config: SftTrainConfig, source: Source, say: Callable[[str], None]):
        self.config, self.source, self.say = config, source, say
        self._named: set[int] = set()
        self._num_dropped_in_a_row = 0

    def fit(self, items: Sequence[Demonstration]) -> tuple[list[Demonstration], int]:
        """Those that are trained on, and how many were too long. Raises `UnmaskError` where no example is short enough."""
        limit = self.config.max_length
        if limit is None:
            return list(items), 0
        fitting, num_too_long = [], 0
        for item in items:
            length = len(item.prompt_ids) + len(item.response_ids)
            kept: Demonstration | None = item
            if length > limit:
                num_too_long += 1
                kept = self._cut(item, limit) if self.config.when_longer == "cut" else None
                self._name(item, length, "cut" if kept else "left out")
            self._num_dropped_in_a_row = 0 if kept else self._num_dropped_in_a_row + 1
            if self._num_dropped_in_a_row >= 2 * len(self.source):  # a whole epoch of them, wherever that began
                raise UnmaskError(f"all {len(self.source)} examples are longer than train.max_length {limit}")
            if kept:
                fitting.append(kept)
        return fitting, num_too_long

    def _cut(self, item: Demonstration, limit: int) -> Demonstration | None:
        """None where nothing is left of the response, or it is a recorded trace, which is whole or none."""
        num = limit - len(item.prompt_ids)
        if num <= 0 or item.trace is not None:
            return None
        steps = None if item.step_map is None else item.step_map[:num]
        return replace(item, response_ids=item.response_ids[:num], step_map=steps)

    def _name(self, item: Demonstration, length: int, what: str) -> None:
        name, limit = item.name, self.config.max_length
        if self.config.when_longer == "stop":
            raise UnmaskError(f"example {name}: {length} tokens, more than train.max_length {limit}")
        if item.key in self._named or len(self._named) > _NUM_NAMED:
            return
        self._named.add(item.key)
        further = "; further ones are counted as num_too_long" if len(self._named) > _NUM_NAMED else ""
        self.say(f"example {name}: {length} tokens, {what} (train.max_length {limit}){further}")

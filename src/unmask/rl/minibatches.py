"""Cutting a step's responses into minibatches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def minibatches(items: Sequence[Item], num: int, seed: int) -> list[list[Item]]:
    """At most `num` parts of nearly equal size (never empty), shuffled by the seed."""
    if not items:
        return []
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(items))
    return [[items[i] for i in part] for part in np.array_split(order, min(num, len(items)))]

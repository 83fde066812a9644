"""Grids of cases of which `make test` runs a part, and `make test-slow` the rest."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest


def grid(keep_every: int, **axes: Iterable[Any]) -> pytest.MarkDecorator:
    """As `parametrize` over all combinations, of which one in `keep_every` is not slow: those on the grid's diagonals. So every
    value is met if an axis has not fewer values, and with three axes every pair of the first two."""
    values = [list(axis) for axis in axes.values()]
    cases = []
    for places in product(*(range(len(axis)) for axis in values)):
        case = [axis[place] for axis, place in zip(values, places, strict=True)]
        marks = pytest.mark.slow if sum(places) % keep_every else ()
        cases.append(pytest.param(*case, marks=marks))
    return pytest.mark.parametrize(tuple(axes), cases)

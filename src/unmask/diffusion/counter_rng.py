"""Uniform random numbers as a pure function of integers (a counter-based generator).

A sequence's numbers depend on its own seed and on where they are used, never on its neighbours in a batch, on the order
of calls or on the device. There is no state to save: resuming and replaying are exact by construction.
"""

from __future__ import annotations

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer


def _shift_right(x: Tensor, n: int) -> Tensor:
    return (x >> n) & ((1 << (64 - n)) - 1)  # logical, not arithmetic


def _mix(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014) on int64 tensors; multiplication wraps."""
    x = x + _GOLDEN
    x = (x ^ _shift_right(x, 30)) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift_right(x, 27)) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ _shift_right(x, 31)


def uniform(*keys: Tensor) -> Tensor:
    """Float64 in [0, 1), one per element of the int64 keys' broadcast shape."""
    state = torch.zeros_like(keys[0])
    for key in keys:
        state = _mix(state ^ _mix(key))
    return _shift_right(state, 11).double() * 2.0**-53

"""What a decoder asks of a cache of keys and values; the engine has one (`unmask.engine.paged`).

Shape suffixes: B rows, L new tokens, G key/value heads, K head_dim.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from unmask.attention import Attend, TokenLayout


class Cache(Protocol):
    """Made for one forward. What `extend` returns goes into the attention as keys and values."""

    def attention(self, layout: TokenLayout) -> Attend:
        """What the new tokens see: of the cached ones and of each other."""
        ...

    def extend(self, layer: int, k_BGLK: Tensor, v_BGLK: Tensor) -> tuple[Tensor, Tensor]:
        """Called by layer 0, 1, .. in turn with its new keys and values."""
        ...

"""Attention: one mask rule (`rule.py`) and the backends that execute it.

A backend is built once per forward from the layouts of the query and key tokens and is then called by every layer:

    attend = backend(q_layout, k_layout)
    out_BHQD = attend(q_BHQD, k_BGKD, v_BGKD)     # H query heads, G key/value heads, D head_dim; scale 1/sqrt(D)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from unmask.attention.dense import DenseAttention
from unmask.attention.flex import FlexAttention
from unmask.attention.rule import CLEAN, PAD_DOC, TokenLayout, count_visible, is_visible, visibility
from unmask.attention.tiled import TiledAttention
from unmask.errors import UnmaskError


class Attend(Protocol):
    def __call__(self, q_BHQD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor, /) -> Tensor: ...


AttentionBackend = Callable[[TokenLayout, TokenLayout], Attend]

BACKENDS: dict[str, AttentionBackend] = {"dense": DenseAttention, "tiled": TiledAttention, "flex": FlexAttention}


def get_backend(name: str, device: torch.device) -> AttentionBackend:
    """Backend by name; "auto" is FlexAttention on GPUs and the tiled one elsewhere."""
    if name == "auto":
        name = "flex" if device.type == "cuda" else "tiled"
    if name not in BACKENDS:
        raise UnmaskError(f"unknown attention backend {name!r}; known: auto, {', '.join(BACKENDS)}")
    return BACKENDS[name]


__all__ = [
    "BACKENDS", "CLEAN", "PAD_DOC", "Attend", "AttentionBackend", "DenseAttention", "FlexAttention", "TiledAttention",
    "TokenLayout", "count_visible", "get_backend", "is_visible", "visibility",
]  # fmt: skip

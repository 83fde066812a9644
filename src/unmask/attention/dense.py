"""Dense backend: the rule as a boolean mask for PyTorch's scaled_dot_product_attention. Runs everywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.attention.rule import TokenLayout, visibility


class DenseAttention:
    """Holds the [B, 1, Q, K] mask of one forward; all layers share it."""

    def __init__(self, q: TokenLayout, k: TokenLayout):
        self.attn_mask = visibility(q, k)[:, None]

    def __call__(self, q_BHQD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor) -> Tensor:
        q, k, v = replayable(q_BHQD, k_BGKD, v_BGKD)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.attn_mask, enable_gqa=True).to(q_BHQD.dtype)


def replayable(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values in float64, where that is what exact replay rests on: float32 without gradient on a CPU.

    The rounding of float32 attention scores depends on the shape of the call and is what limits replay (docs/log.md:
    mismatch 8e-6 -> 2e-6 with peaked attention). Forward only, float64 costs little on a CPU.
    """
    if q.dtype == torch.float32 and q.device.type == "cpu" and not torch.is_grad_enabled():
        return q.double(), k.double(), v.double()
    return q, k, v

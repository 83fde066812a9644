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
        dtype = q_BHQD.dtype
        if dtype == torch.float32 and not torch.is_grad_enabled() and q_BHQD.device.type == "cpu":
            # The rounding of float32 attention scores depends on the shape of the call and is what limits exact replay
            # (docs/log.md: mismatch 8e-6 -> 2e-6 with peaked attention). Forward only, float64 costs little on a CPU.
            q_BHQD, k_BGKD, v_BGKD = q_BHQD.double(), k_BGKD.double(), v_BGKD.double()
        out = F.scaled_dot_product_attention(q_BHQD, k_BGKD, v_BGKD, attn_mask=self.attn_mask, enable_gqa=True)
        return out.to(dtype)

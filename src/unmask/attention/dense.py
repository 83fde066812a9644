"""Dense backend: the rule as a boolean mask for PyTorch's scaled_dot_product_attention. Runs everywhere."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from unmask.attention.rule import TokenLayout, visibility


class DenseAttention:
    """Holds the [B, 1, Q, K] mask of one forward; all layers share it."""

    def __init__(self, q: TokenLayout, k: TokenLayout):
        self.attn_mask = visibility(q, k)[:, None]

    def __call__(self, q_BHQD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q_BHQD, k_BGKD, v_BGKD, attn_mask=self.attn_mask, enable_gqa=True)

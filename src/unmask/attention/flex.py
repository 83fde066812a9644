"""FlexAttention backend: the rule as a block-sparse mask. For GPUs (PyTorch has no CPU backward for it)."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from unmask.attention.rule import TokenLayout, is_visible


@cache
def compiled_flex_attention():
    return torch.compile(flex_attention, dynamic=True)


class FlexAttention:
    """Holds the BlockMask of one forward; all layers share it. Compiled on GPUs, eager (slow, exact) elsewhere."""

    def __init__(self, q: TokenLayout, k: TokenLayout):
        q_prefix_BL = q.prefix_doc_BL

        def mask_mod(b, h, q_idx, k_idx):
            return is_visible(
                q.doc_BL[b, q_idx], q_prefix_BL[b, q_idx], q.block_BL[b, q_idx], q.copy_BL[b, q_idx],
                k.doc_BL[b, k_idx], k.block_BL[b, k_idx], k.copy_BL[b, k_idx],
            )  # fmt: skip

        (rows, num_queries), num_keys = q.doc_BL.shape, k.doc_BL.shape[1]
        self.block_mask = create_block_mask(mask_mod, rows, None, num_queries, num_keys, device=q.doc_BL.device)
        self._attend = compiled_flex_attention() if q.doc_BL.is_cuda else flex_attention

    def __call__(self, q_BHQD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor) -> Tensor:
        return self._attend(q_BHQD, k_BGKD, v_BGKD, block_mask=self.block_mask, enable_gqa=True)

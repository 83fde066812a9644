"""Shifted logits (Dream): the output at position i - 1 is the prediction for token i. Undone here, for every layout.

Shape suffixes: B rows, L tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.attention import CLEAN, TokenLayout


def shift_sources(layout: TokenLayout) -> Tensor:
    """The column [B, L] of the token whose hidden state each token's prediction is read from: that one position before it.

    The token before is that of the same sequence and copy, else the clean one of the same sequence (a noisy copy begins
    in the middle of its sequence) or of its prefix. A token without any keeps its own, as the first of a sequence does in
    the published code.
    """
    num_tokens = layout.doc_BL.shape[1]
    column_L = torch.arange(num_tokens, device=layout.doc_BL.device)
    # A key per (sequence, position); what is not clean gets a key that nobody looks for.
    stride = layout.position_BL.amax() + 2
    key_BL = layout.doc_BL * stride + layout.position_BL
    nowhere = torch.iinfo(torch.long).max
    sorted_BL, column_BL = torch.where(layout.copy_BL == CLEAN, key_BL, nowhere).sort(dim=1, stable=True)
    source_BL = column_L.expand_as(key_BL)
    for doc_BL in (layout.prefix_doc_BL, layout.doc_BL):
        wanted_BL = torch.where(layout.position_BL > 0, doc_BL * stride + layout.position_BL - 1, nowhere - 1)
        index_BL = torch.searchsorted(sorted_BL, wanted_BL).clamp(max=num_tokens - 1)
        is_clean_BL = sorted_BL.gather(1, index_BL) == wanted_BL
        source_BL = torch.where(is_clean_BL, column_BL.gather(1, index_BL), source_BL)

    # Rows keep the order of a copy's tokens, so its token before is the column before.
    is_next_BL = torch.zeros_like(key_BL, dtype=torch.bool)
    is_next_BL[:, 1:] = (key_BL[:, 1:] == key_BL[:, :-1] + 1) & (layout.copy_BL[:, 1:] == layout.copy_BL[:, :-1])
    return torch.where(is_next_BL, column_L - 1, source_BL)

"""The mask rule: which token may look at which. The only place where it is written.

Every setting of the field (block-causal inference, full attention, autoregressive, noisy copies for training, packing)
is a choice of `doc`, `block` and `copy` for each token; backends only execute `is_visible`.

Shape suffixes: B rows, L tokens of a row, Q query tokens, K key tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PAD_DOC = -1
CLEAN = 0


@dataclass(frozen=True, slots=True)
class TokenLayout:
    """What the rule needs to know of each token of packed rows; all int64 [B, L].

    doc: which sequence the token belongs to; `PAD_DOC` for padding (padding sees only padding).
    block: absolute block index in that sequence.
    copy: 0 = clean, 1.. = a noisy copy.
    position: absolute position in the sequence, for rotary embeddings (not part of the rule).
    prefix: the sequence whose clean tokens this one sees as if they were its own: a prompt that several responses share.
        Elsewhere the token's own doc; None = so for all tokens.
    """

    doc_BL: Tensor
    block_BL: Tensor
    copy_BL: Tensor
    position_BL: Tensor
    prefix_BL: Tensor | None = None

    @property
    def prefix_doc_BL(self) -> Tensor:  # noqa: N802
        return self.doc_BL if self.prefix_BL is None else self.prefix_BL

    def select(self, columns_N: Tensor) -> TokenLayout:
        """The tokens of these columns, in every row."""
        fields = (self.doc_BL, self.block_BL, self.copy_BL, self.position_BL, self.prefix_doc_BL)
        return TokenLayout(*(field.index_select(1, columns_N) for field in fields))

    def cat(self, other: TokenLayout) -> TokenLayout:
        """This layout's tokens followed by the other's, row by row."""
        return TokenLayout(
            torch.cat((self.doc_BL, other.doc_BL), 1),
            torch.cat((self.block_BL, other.block_BL), 1),
            torch.cat((self.copy_BL, other.copy_BL), 1),
            torch.cat((self.position_BL, other.position_BL), 1),
            torch.cat((self.prefix_doc_BL, other.prefix_doc_BL), 1),
        )

    @classmethod
    def from_positions(cls, position_BL: Tensor, block_size: int, is_real_BL: Tensor, copy: int = CLEAN) -> TokenLayout:
        """One sequence per row, blocks of `block_size` on absolute positions; where `is_real_BL` is false: padding."""
        return cls.from_blocks(position_BL, torch.div(position_BL, block_size, rounding_mode="floor"), is_real_BL, copy)

    @classmethod
    def from_blocks(cls, position_BL: Tensor, block_BL: Tensor, is_real_BL: Tensor, copy: int = CLEAN) -> TokenLayout:
        """One sequence per row with these blocks; where `is_real_BL` is false: padding."""
        return cls(torch.where(is_real_BL, 0, PAD_DOC), block_BL, torch.full_like(position_BL, copy), position_BL)

    @classmethod
    def sequences(cls, length: int, block_size: int, lengths_B: Tensor) -> TokenLayout:
        """Right-padded rows of `length` tokens, one clean sequence each, of which the first lengths_B[i] are real."""
        position_BL = torch.arange(length, device=lengths_B.device).expand(len(lengths_B), length)
        return cls.from_positions(position_BL, block_size, position_BL < lengths_B[:, None])


def is_visible(q_doc, q_prefix, q_block, q_copy, k_doc, k_block, k_copy):
    """The rule, element-wise (tensors of any broadcastable shape, or ints)."""
    is_before = (k_copy == CLEAN) & (k_block < q_block) & ((k_doc == q_doc) | (k_doc == q_prefix))
    return is_before | ((k_doc == q_doc) & (k_copy == q_copy) & (k_block == q_block))


def visibility(q: TokenLayout, k: TokenLayout) -> Tensor:
    """The rule as a dense table: bool [B, Q, K]."""
    return is_visible(
        q.doc_BL[:, :, None], q.prefix_doc_BL[:, :, None], q.block_BL[:, :, None], q.copy_BL[:, :, None],
        k.doc_BL[:, None, :], k.block_BL[:, None, :], k.copy_BL[:, None, :],
    )  # fmt: skip


def count_visible(doc_L: np.ndarray, prefix_L: np.ndarray, block_L: np.ndarray, copy_L: np.ndarray) -> np.ndarray:
    """How many tokens of its row each token sees, int64 [L], by sorting: no table of the row with itself is made.

    The arguments are the fields of a `TokenLayout` (prefix_L: `prefix_doc_BL`) of one row, int64 [L].
    """
    num_blocks = int(block_L.max(initial=0)) + 1
    own = (doc_L * (int(copy_L.max(initial=0)) + 1) + copy_L) * num_blocks + block_L
    _, group_L, size = np.unique(own, return_inverse=True, return_counts=True)
    clean = np.sort((doc_L * num_blocks + block_L)[copy_L == CLEAN])

    def num_before(docs_L: np.ndarray) -> np.ndarray:
        first_L = docs_L * num_blocks
        return np.searchsorted(clean, first_L + block_L) - np.searchsorted(clean, first_L)

    return size[group_L] + num_before(doc_L) + np.where(prefix_L == doc_L, 0, num_before(prefix_L))

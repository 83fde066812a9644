"""Keys and values of committed (clean) tokens, dense: one slot per absolute position and row.

Shape suffixes: B rows, S slots, L new tokens, D model width, G key/value heads, K head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.attention import TokenLayout
from unmask.models.spec import ModelSpec


class KVCache:
    """Slot i of a row holds absolute position i; slots from `length_B` on are free (and invisible).

    A forward sees the committed slots followed by its own tokens. The keys and values of those new tokens are held
    until `commit` keeps the clean ones; a noisy copy's are simply not committed.
    """

    def __init__(self, spec: ModelSpec, rows: int, num_slots: int, block_size: int, device: torch.device):
        self._shape = (spec.num_layers, rows, spec.num_kv_heads, num_slots, spec.head_dim)
        self.k = self.v = torch.empty(0, device=device)  # allocated at the first commit, in the dtype of what comes
        self.block_size = block_size
        self.length_B = torch.zeros(rows, dtype=torch.long, device=device)
        self._num_visible = 0  # slots any row uses; a Python int so that slicing costs no device sync
        self._new: list[tuple[Tensor, Tensor]] = []
        self._last_hidden_BD: Tensor | None = None  # of the last committed token, for families with shifted logits
        self._new_hidden_BLD: Tensor | None = None

    def layout(self) -> TokenLayout:
        return TokenLayout.sequences(self._num_visible, self.block_size, self.length_B)

    def extend(self, layer: int, k_BGLK: Tensor, v_BGLK: Tensor) -> tuple[Tensor, Tensor]:
        """Called by layer 0, 1, .. in turn: remembers the new tokens, returns committed plus new."""
        if layer == 0:
            self._new = []
        self._new.append((k_BGLK, v_BGLK))
        if not self._num_visible:
            return k_BGLK, v_BGLK
        return (
            torch.cat((self.k[layer, :, :, : self._num_visible], k_BGLK), 2),
            torch.cat((self.v[layer, :, :, : self._num_visible], v_BGLK), 2),
        )

    def exchange_hidden(self, hidden_BLD: Tensor) -> tuple[Tensor | None, Tensor]:
        """Remembers the new tokens' hidden states; returns that of the last committed one and its position [B]."""
        self._new_hidden_BLD = hidden_BLD
        return self._last_hidden_BD, self.length_B - 1

    def commit(self, num_tokens_B: Tensor, max_length: int) -> None:
        """Keeps the first num_tokens_B[i] of row i's new tokens; they continue row i's committed prefix.

        max_length: an upper bound of the rows' lengths afterwards, known without asking the device.
        """
        if not self.k.numel():  # under autocast, keys and values have another dtype than the weights
            self.k = self._new[0][1].new_zeros(self._shape)
            self.v = torch.zeros_like(self.k)
        num_new = self._new[0][0].shape[2]
        offset_L = torch.arange(num_new, device=self.k.device)
        row, column = (offset_L < num_tokens_B[:, None]).nonzero(as_tuple=True)
        slot = self.length_B[row] + column
        for layer, (k_BGLK, v_BGLK) in enumerate(self._new):
            self.k[layer, row, :, slot] = k_BGLK[row, :, column]
            self.v[layer, row, :, slot] = v_BGLK[row, :, column]
        if self._new_hidden_BLD is not None:
            last_B1D = (num_tokens_B - 1).clamp(min=0)[:, None, None].expand(-1, 1, self._new_hidden_BLD.shape[-1])
            last_BD = self._new_hidden_BLD.gather(1, last_B1D)[:, 0]
            before_BD = last_BD if self._last_hidden_BD is None else self._last_hidden_BD
            self._last_hidden_BD = torch.where(num_tokens_B[:, None] > 0, last_BD, before_BD)
        self.length_B = self.length_B + num_tokens_B
        self._num_visible = max_length
        self._new, self._new_hidden_BLD = [], None

    def select(self, rows: Tensor) -> None:
        """Keeps only these rows."""
        self.length_B = self.length_B[rows]
        if self._last_hidden_BD is not None:
            self._last_hidden_BD = self._last_hidden_BD[rows]
        if self.k.numel():
            self.k, self.v = self.k[:, rows], self.v[:, rows]
        else:
            self._shape = (self._shape[0], len(rows), *self._shape[2:])

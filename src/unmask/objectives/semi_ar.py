"""Semi-autoregressive SFT for block models: each block is denoised given the clean blocks before it, all in one row.

Arriola et al. 2025 (block diffusion, arXiv 2503.09573); TraceRL paper section 3, "semi-autoregressive".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.diffusion.counter_rng import uniform
from unmask.objectives.rows import RowBatch, TrainRow, build_row


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A tokenised example: `key` names it in the random numbers, so the same example gets the same masks anywhere."""

    key: int
    prompt_ids: Sequence[int]
    response_ids: Sequence[int]  # ends with the turn's stop token


@dataclass(frozen=True)
class SemiAR:
    """Masks every response token of a block with the block's own rate, drawn from U(min_rate, max_rate).

    Masks are a pure function of (seed, example, epoch, copy): independent of batches, ranks and resumption.
    """

    block_size: int
    mask_token_id: int
    pad_token_id: int
    seed: int
    min_rate: float = 0.1
    max_rate: float = 0.9
    num_noisy_copies: int = 1  # noisy copies of each block that share the clean one
    num_trained_pads: int | None = None  # pads trained after the response; None = up to the end of its last block

    def rows(self, items: Sequence[Demonstration], epoch: int) -> list[TrainRow]:
        """One row per demonstration, with "weight" such that the loss is the mean over all trained tokens."""
        first_block = np.array([len(item.prompt_ids) for item in items]) // self.block_size
        num_blocks = -(-np.array([len(i.prompt_ids) + len(i.response_ids) for i in items]) // self.block_size) - first_block
        is_drawn = self._draw_masks(np.array([item.key for item in items]), epoch, first_block, int(num_blocks.max()))
        rows = [
            row
            for item, first, num, drawn in zip(items, first_block, num_blocks, is_drawn, strict=True)
            if (row := self._row(item, first, drawn[:, :num])) is not None
        ]
        num_targets = sum(len(row.target_ids) for row in rows)
        for row in rows:
            row.values["weight"] = np.full(len(row.target_ids), 1.0 / num_targets)
        return rows

    def _draw_masks(self, keys: np.ndarray, epoch: int, first_block: np.ndarray, num_blocks: int) -> np.ndarray:
        """Bool [items, copies, num_blocks, b]: is the position masked? The rate is the block's own."""
        b, copies = self.block_size, self.num_noisy_copies
        start = (first_block[:, None] + np.arange(num_blocks))[:, None, :, None] * b
        cells = np.concatenate((-1 - start, start + np.arange(b)), -1)  # cell -1 - start: the block's rate
        shape = (len(keys), copies, num_blocks, b + 1)
        key = np.broadcast_to(keys[:, None, None, None], shape)
        copy = np.broadcast_to(np.arange(copies)[:, None, None], shape)
        cell = np.broadcast_to(cells, shape)
        u = uniform(*(torch.tensor(a) for a in (np.full(shape, self.seed), np.full(shape, epoch), key, copy, cell))).numpy()
        return u[..., 1:] < self.min_rate + (self.max_rate - self.min_rate) * u[..., :1]

    def _row(self, item: Demonstration, first_block: int, is_drawn: np.ndarray) -> TrainRow | None:
        b, num_prompt = self.block_size, len(item.prompt_ids)
        ids = [*item.prompt_ids, *item.response_ids]
        num_pads = -len(ids) % b
        end = len(ids) + (num_pads if self.num_trained_pads is None else self.num_trained_pads)
        token_ids = np.array(ids + [self.pad_token_id] * num_pads, dtype=np.int64)
        blocks = np.arange(first_block, len(token_ids) // b)
        position = blocks[:, None] * b + np.arange(b)
        is_masked = is_drawn & (position >= num_prompt)
        is_target = is_masked & (position < end)
        keep = is_target.any(-1)  # [copies, blocks]; a copy without a target teaches nothing
        if not keep.any():
            return None
        block_index, copy_index = keep.T.nonzero()
        noisy_ids = np.where(is_masked, self.mask_token_id, token_ids[position])[copy_index, block_index]
        return build_row(token_ids, b, blocks[block_index], noisy_ids, is_target[copy_index, block_index])

    def loss(self, logits_NV: Tensor, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy (natural log) over the vocabulary, and sums for the metrics."""
        nll_N = torch.nn.functional.cross_entropy(logits_NV, batch.target_ids_N, reduction="none")
        loss = (batch.values["weight"] * nll_N).sum()
        hits = (logits_NV.detach().argmax(-1) == batch.target_ids_N).float()
        return loss, {"token_accuracy": (batch.values["weight"] * hits).sum()}

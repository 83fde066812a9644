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
        rows = [row for item in items if (row := self._row(item, epoch)) is not None]
        num_targets = sum(len(row.target_ids) for row in rows)
        for row in rows:
            row.values["weight"] = np.full(len(row.target_ids), 1.0 / num_targets)
        return rows

    def _row(self, item: Demonstration, epoch: int) -> TrainRow | None:
        b, num_prompt = self.block_size, len(item.prompt_ids)
        ids = [*item.prompt_ids, *item.response_ids]
        num_pads = -len(ids) % b
        end = len(ids) + (num_pads if self.num_trained_pads is None else self.num_trained_pads)
        token_ids = np.array(ids + [self.pad_token_id] * num_pads, dtype=np.int64)
        blocks = np.arange(num_prompt // b, len(token_ids) // b)
        position = blocks[:, None] * b + np.arange(b)
        copies = self.num_noisy_copies
        rate, draw = self._random(item.key, epoch, position, copies)
        is_masked = (draw < rate) & (position >= num_prompt)
        is_target = is_masked & (position < end)
        keep = is_target.any(-1)  # [copies, blocks]; a copy without a target teaches nothing
        if not keep.any():
            return None
        copy_index, block_index = keep.T.nonzero()[::-1]  # by block, then copy
        noisy_ids = np.where(is_masked, self.mask_token_id, token_ids[position])
        return build_row(
            token_ids, b, blocks[block_index], noisy_ids[copy_index, block_index], is_target[copy_index, block_index]
        )

    def _random(self, key: int, epoch: int, position: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
        """Mask rate [copies, blocks, 1] and a uniform number per position [copies, blocks, b]."""
        cells = torch.from_numpy(np.concatenate((-1 - position[:, :1], position), 1))  # column 0: the block's rate
        u = uniform(*(torch.tensor(k) for k in (self.seed, key, epoch)), torch.arange(copies)[:, None, None], cells).numpy()
        return self.min_rate + (self.max_rate - self.min_rate) * u[..., :1], u[..., 1:]

    def loss(self, logits_NV: Tensor, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy (natural log) over the vocabulary, and sums for the metrics."""
        nll_N = torch.nn.functional.cross_entropy(logits_NV, batch.target_ids_N, reduction="none")
        loss = (batch.values["weight"] * nll_N).sum()
        hits = (logits_NV.detach().argmax(-1) == batch.target_ids_N).float()
        return loss, {"token_accuracy": (batch.values["weight"] * hits).sum()}

"""Semi-autoregressive SFT for block models: each block is denoised given the clean blocks before it, all in one row.

Arriola et al. 2025 (block diffusion, arXiv 2503.09573); TraceRL paper section 3, "semi-autoregressive".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from unmask.diffusion.counter_rng import uniform
from unmask.models import ModelSpec
from unmask.objectives.rows import RowBatch, TrainRow, build_row
from unmask.types import Demonstration


class SemiAR:
    """Masks the response tokens of each block at the block's own rate, drawn from U(min_rate, max_rate)."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        block_size: int | None = Field(None, ge=1, description="None = the model's")
        min_rate: float = Field(0.1, ge=0, le=1, description="lowest rate at which the tokens of a block are masked")
        max_rate: float = Field(0.9, ge=0, le=1, description="highest rate")
        num_noisy_copies: int = Field(1, ge=1, description="noisy copies of each block that share the clean one")
        num_trained_pads: int | None = Field(
            None, ge=0, description="pads trained after the response, within its last block; None = all of them"
        )

        @model_validator(mode="after")
        def _ordered(self) -> SemiAR.Options:
            if self.min_rate > self.max_rate:
                raise ValueError(f"min_rate {self.min_rate} is above max_rate {self.max_rate}")
            return self

    def __init__(self, options: Options, spec: ModelSpec, seed: int):
        self.options, self.seed = options, seed
        self.block_size = options.block_size or spec.block_size
        self.mask_token_id, self.pad_token_id = spec.mask_token_id, spec.pad_token_id

    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]:
        """One row per demonstration, with "weight" such that the loss is the mean over all trained tokens."""
        first_block = np.array([len(item.prompt_ids) for item in items]) // self.block_size
        num_tokens = np.array([len(item.prompt_ids) + len(item.response_ids) for item in items])
        num_blocks = -(-num_tokens // self.block_size) - first_block
        is_drawn = self._draw_masks(items, first_block, int(num_blocks.max()))
        rows = [
            row
            for item, first, num, drawn in zip(items, first_block, num_blocks, is_drawn, strict=True)
            if (row := self._row(item, first, drawn[:, :num])) is not None
        ]
        num_targets = sum(len(row.target_ids) for row in rows)
        for row in rows:
            row.values["weight"] = np.full(len(row.target_ids), 1.0 / num_targets)
        return rows

    def _draw_masks(self, items: Sequence[Demonstration], first_block: np.ndarray, num_blocks: int) -> np.ndarray:
        """Bool [items, copies, num_blocks, b]: is the position masked?"""
        o, b = self.options, self.block_size
        start = (first_block[:, None] + np.arange(num_blocks))[:, None, :, None] * b
        cells = np.concatenate((-1 - start, start + np.arange(b)), -1)  # cell -1 - start: the block's rate
        key, epoch = (np.array(k)[:, None, None, None] for k in ([i.key for i in items], [i.epoch for i in items]))
        copy = np.arange(o.num_noisy_copies)[:, None, None]
        keys = np.broadcast_arrays(np.int64(self.seed), epoch, key, copy, cells)
        u = uniform(*(torch.from_numpy(np.ascontiguousarray(k)) for k in keys)).numpy()
        return u[..., 1:] < o.min_rate + (o.max_rate - o.min_rate) * u[..., :1]

    def _row(self, item: Demonstration, first_block: int, is_drawn: np.ndarray) -> TrainRow | None:
        b, num_prompt = self.block_size, len(item.prompt_ids)
        ids = [*item.prompt_ids, *item.response_ids]
        num_pads = -len(ids) % b
        end = len(ids) + (num_pads if self.options.num_trained_pads is None else self.options.num_trained_pads)
        token_ids = np.array(ids + [self.pad_token_id] * num_pads, dtype=np.int64)
        blocks = np.arange(first_block, len(token_ids) // b)
        position = blocks[:, None] * b + np.arange(b)
        is_masked = is_drawn & (position >= num_prompt)
        is_target = is_masked & (position < end)
        keep = np.any(is_target, axis=-1)  # [copies, blocks]; a copy without a target teaches nothing
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

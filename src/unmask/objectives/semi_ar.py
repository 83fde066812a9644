"""Semi-autoregressive SFT for block models: each block is denoised given the clean blocks before it, all in one row.

Arriola et al. 2025 (block diffusion, arXiv 2503.09573); TraceRL paper section 3, "semi-autoregressive".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.models import ModelSpec
from unmask.objectives.cross_entropy import cross_entropy
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.masking import MaskRates, draw_masks
from unmask.objectives.rows import RowBatch, TrainRow, set_weights
from unmask.objectives.views import Grid, masked_rows
from unmask.types import Demonstration


class SemiAR:
    """Masks the response tokens of each block at the block's own rate, drawn from U(min_rate, max_rate)."""

    class Options(MaskRates):
        block_size: int | None = Field(None, ge=1, description="None = the model's")
        num_noisy_copies: int = Field(1, ge=1, description="noisy copies of each block that share the clean one")
        num_trained_pads: int | None = Field(
            None, ge=0, description="pads trained after the response, within its last block; None = all of them"
        )

    def __init__(self, options: Options, spec: ModelSpec, seed: int):
        if spec.attention != "block_causal":
            raise UnmaskError(
                f'semi_ar is for block models; {spec.family} has {spec.attention} attention: use "random_masking"'
            )
        self.options, self.seed = options, seed
        self.block_size = options.block_size or spec.block_size
        self.mask_token_id, self.pad_token_id = spec.mask_token_id, spec.pad_token_id

    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]:
        """One row per demonstration, with "weight" such that the loss is the mean over all trained tokens."""
        first_block = np.array([len(item.prompt_ids) for item in items]) // self.block_size
        num_tokens = np.array([len(item.prompt_ids) + len(item.response_ids) for item in items])
        num_blocks = -(-num_tokens // self.block_size) - first_block
        is_drawn = self._draw_masks(items, first_block, int(num_blocks.max()))
        rows_of = [self._rows(item, int(first), drawn) for item, first, drawn in zip(items, first_block, is_drawn, strict=True)]
        set_weights(rows_of, "token", 1, len(rows_of))
        return [row for rows in rows_of for row in rows]

    def _draw_masks(self, items: Sequence[Demonstration], first_block: np.ndarray, num_blocks: int) -> np.ndarray:
        """Bool [items, copies, positions]: is the position masked? Positions begin with each item's first block."""
        o, b = self.options, self.block_size
        position = first_block[:, None] * b + np.arange(num_blocks * b)
        keys = (self.seed, np.array([item.epoch for item in items]), np.array([item.key for item in items]))
        return draw_masks(keys, o.num_noisy_copies, position, position // b * b, o.min_rate, o.max_rate)

    def _rows(self, item: Demonstration, first_block: int, is_drawn: np.ndarray) -> list[TrainRow]:
        b, num_prompt = self.block_size, len(item.prompt_ids)
        num_tokens = num_prompt + len(item.response_ids)
        num_pads = -num_tokens % b
        end = num_tokens + (num_pads if self.options.num_trained_pads is None else self.options.num_trained_pads)
        position = np.arange(num_tokens + num_pads)
        is_masked = np.zeros((len(is_drawn), len(position)), dtype=bool)
        is_masked[:, first_block * b :] = is_drawn[:, : len(position) - first_block * b]
        is_masked &= position >= num_prompt
        canvas_ids = [*item.response_ids, *[self.pad_token_id] * num_pads]
        return masked_rows(item.prompt_ids, canvas_ids, Grid(b), self.mask_token_id, is_masked, is_masked & (position < end))

    def loss(self, stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(stats, batch)

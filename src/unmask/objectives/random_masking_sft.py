"""SFT with random masks over the whole response (LLaDA, arXiv 2502.09992; Dream). For every family.

Full attention: response tokens and the pads behind them are masked at one rate and seen by all. Block models: the same
masks, every block in a noisy copy given the clean blocks before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from torch import Tensor

from unmask.models import ModelSpec
from unmask.objectives.cross_entropy import cross_entropy
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.masking import MaskRates, draw_masks
from unmask.objectives.rows import RowBatch, TrainRow, set_weights
from unmask.objectives.views import Grid, masked_rows
from unmask.types import Demonstration


class RandomMaskingSft:
    """Masks of each response, at a rate drawn from U(min_rate, max_rate) for each."""

    class Options(MaskRates):
        block_size: int | None = Field(None, ge=1, description="block models: None = the model's")
        num_masks: int = Field(1, ge=1, description="masks drawn for each demonstration")
        canvas_length: int | None = Field(
            None, ge=1, description="responses are filled up with pads to so many tokens, as max_new_tokens will be; None = "
            "full attention: the longest of the batch, block models: the end of the block",
        )  # fmt: skip
        num_trained_pads: int | None = Field(None, ge=0, description="pads trained after the response; None = all")

    def __init__(self, options: Options, spec: ModelSpec, seed: int):
        self.options, self.spec, self.seed = options, spec, seed
        self.grid = Grid.of(spec, options.block_size)

    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]:
        """Rows of the demonstrations, with "weight" such that the loss is the mean over all trained tokens."""
        canvas = [self._canvas(item, items) for item in items]
        position_IS = np.broadcast_to(np.arange(max(map(len, canvas))), (len(items), max(map(len, canvas))))
        keys = (self.seed, np.array([item.epoch for item in items]), np.array([item.key for item in items]))
        o = self.options
        is_drawn_IVS = draw_masks(keys, o.num_masks, position_IS, np.zeros_like(position_IS), o.min_rate, o.max_rate)
        rows_of = []
        for item, canvas_ids, is_drawn_VS in zip(items, canvas, is_drawn_IVS, strict=True):
            num_pads = len(canvas_ids) - len(item.response_ids)
            end = len(item.response_ids) + (num_pads if o.num_trained_pads is None else o.num_trained_pads)
            is_masked_VS = np.pad(is_drawn_VS[:, : len(canvas_ids)], ((0, 0), (len(item.prompt_ids), 0)))
            is_target_VS = is_masked_VS & (np.arange(is_masked_VS.shape[1]) < len(item.prompt_ids) + end)
            rows_of.append(
                masked_rows(item.prompt_ids, canvas_ids, self.grid, self.spec.mask_token_id, is_masked_VS, is_target_VS)
            )
        set_weights(rows_of, "token", 1, len(rows_of))
        return [row for rows in rows_of for row in rows]

    def _canvas(self, item: Demonstration, items: Sequence[Demonstration]) -> list[int]:
        """The response and the pads behind it."""
        length = max(len(item.response_ids), self.options.canvas_length or 0)
        if self.grid.block_size:
            length += -(len(item.prompt_ids) + length) % self.grid.block_size
        elif self.options.canvas_length is None:
            length = max(len(other.response_ids) for other in items)
        return [*item.response_ids, *[self.spec.pad_token_id] * (length - len(item.response_ids))]

    def loss(self, stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(stats, batch)

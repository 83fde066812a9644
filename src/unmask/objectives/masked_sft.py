"""What SFT with masks drawn at random has in common: the canvas, the rates, the masks, the weights.

Rates are drawn for each sequence or for each of its blocks, from U(min_rate, max_rate); every maskable token is masked with
the rate of its block. A mask is a function of (seed, epoch, sample): any batch, any rank, before and after resumption.

Shape suffixes: V masks, S positions of prompt and canvas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor

from unmask.models import ModelSpec
from unmask.objectives.cross_entropy import SftOptions, cross_entropy
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.masking import MaskRates, draw_blocks, draw_positions
from unmask.objectives.rows import RowBatch, TrainRow, name_rows, set_weights
from unmask.objectives.views import Grid, masked_rows
from unmask.types import Demonstration

WINDOW = 32  # tokens of a full-attention model's block, unless said otherwise
_SAMPLE_STRIDE, _BLOCK_STRIDE = (5**0.5 - 1) / 2, 2**0.5  # irrational: their multiples fill [0, 1) evenly, however many


class MaskedSftOptions(MaskRates, SftOptions):
    block_size: int | None = Field(
        None, ge=1, description=f"None = the model's; full attention: blocks of the canvas, None = {WINDOW}"
    )
    rate_per: Literal["sequence", "block"] = Field("sequence", description="what a rate is drawn for")
    rates: Literal["independent", "stratified"] = Field(
        "independent",
        description="stratified = spread evenly over the masks, the blocks and the samples that follow each other",
    )
    num_masks: int = Field(1, ge=1, description="masks drawn for each demonstration")
    has_complements: bool = Field(
        False, description="each mask once more with its complement: every token is trained by the pair"
    )
    loss_normalization: Literal["token", "sequence", "constant", "elbo"] = Field(  # type: ignore[assignment]
        "token", description="how tokens are averaged; elbo = 1 / rate each, over the tokens that may be masked"
    )
    canvas_length: int | None = Field(
        None, ge=1, description="responses are filled up with pads to so many tokens, as max_new_tokens will be; None, and for "
        "block models: to whole blocks",
    )  # fmt: skip
    num_trained_pads: int | None = Field(None, ge=0, description="pads trained after the response; None = all of the canvas")


class MaskedSft:
    """Objectives say what a mask shows (`views`) and how rates are drawn by default."""

    Options: type[MaskedSftOptions]

    def __init__(self, options: MaskedSftOptions, spec: ModelSpec, seed: int):
        self.options, self.spec, self.seed = options, spec, seed
        self.grid = Grid.of(spec, options.block_size)
        self.block_size = self.grid.block_size or options.block_size or WINDOW

    def views(self, is_masked_VS: np.ndarray, rate_VS: np.ndarray, block_S: np.ndarray) -> tuple[np.ndarray, ...]:
        """What is masked, what of it may be a target, and the rates, of the masks that are shown; bool, bool, float [V', S]."""
        return is_masked_VS, is_masked_VS, rate_VS

    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]:
        """Rows of the demonstrations, with "weight" of every target; weights refer to all of `items`."""
        o, num_prompts = self.options, [len(item.prompt_ids) for item in items]
        lengths = [self._canvas_length(n, len(item.response_ids)) for n, item in zip(num_prompts, items, strict=True)]
        # Drawn for all of them at once: positions [S] are those of one after the other.
        sizes = np.add(num_prompts, lengths)
        edges = np.cumsum(sizes)[:-1]
        position_S = np.concatenate([np.arange(size) for size in sizes])
        block_S = (position_S - (0 if self.grid.block_size else np.repeat(num_prompts, sizes))) // self.block_size
        epoch_S, key_S, place_S = (np.repeat([getattr(i, name) for i in items], sizes) for name in ("epoch", "key", "place"))
        keys = (self.seed, epoch_S, key_S)
        rate_VS = self._rates(keys, place_S, block_S)
        is_masked_VS = draw_positions(keys, o.num_masks, position_S) < rate_VS
        parts = (np.split(a, edges, axis=-1) for a in (is_masked_VS, rate_VS, block_S))
        rows_of = [
            self._rows(item, length, len(items), *part) for item, length, *part in zip(items, lengths, *parts, strict=True)
        ]
        if o.loss_normalization != "elbo":
            set_weights(rows_of, o.loss_normalization, o.constant_length, len(items))
        return [row for rows in rows_of for row in rows]

    def loss(self, stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(stats, batch)

    def _rows(
        self,
        item: Demonstration,
        length: int,
        num_items: int,
        is_masked_VS: np.ndarray,
        rate_VS: np.ndarray,
        block_S: np.ndarray,
    ) -> list[TrainRow]:
        o, num_prompt, num_response = self.options, len(item.prompt_ids), len(item.response_ids)
        canvas_ids = [*item.response_ids, *[self.spec.pad_token_id] * (length - num_response)]
        num_trainable = min(length, num_response + (length if o.num_trained_pads is None else o.num_trained_pads))
        position_S = np.arange(num_prompt + length)
        if o.has_complements:
            is_masked_VS, rate_VS = np.concatenate((is_masked_VS, ~is_masked_VS)), np.concatenate((rate_VS, 1 - rate_VS))
        num_masks = len(is_masked_VS)
        is_masked_VS, is_target_VS, rate_VS = self.views(is_masked_VS & (position_S >= num_prompt), rate_VS, block_S)
        is_target_VS = is_target_VS & (position_S < num_prompt + num_trainable)
        rows = masked_rows(item.prompt_ids, canvas_ids, self.grid, self.spec.mask_token_id, is_masked_VS, is_target_VS)
        if o.loss_normalization == "elbo":
            for row in rows:
                rate = rate_VS[row.values["mask"], row.values["canvas_index"] + num_prompt]
                row.values["weight"] = 1.0 / (rate * num_masks * num_trainable * num_items)
        return name_rows(rows, item.name)

    def _canvas_length(self, num_prompt: int, num_response: int) -> int:
        length = max(num_response, self.options.canvas_length or 0)
        if self.grid.block_size:
            return length + -(num_prompt + length) % self.block_size
        return length if self.options.canvas_length else length + -length % self.block_size

    def _rates(self, keys: Sequence[np.ndarray | int], place_S: np.ndarray, block_S: np.ndarray) -> np.ndarray:
        """Float [V, S]."""
        o = self.options
        if o.rate_per == "sequence":
            block_S = np.zeros_like(block_S)
        if o.rates == "independent":
            return o.between(draw_blocks(keys, o.num_masks, block_S * self.block_size))
        begin = draw_blocks((self.seed,), 1, np.zeros(1, dtype=np.int64)).item()
        mask_V1 = np.arange(o.num_masks)[:, None]
        share_VS = begin + place_S * _SAMPLE_STRIDE + block_S * _BLOCK_STRIDE + mask_V1 / o.num_masks
        return o.between(share_VS % 1.0)

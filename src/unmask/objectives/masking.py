"""Masks drawn at random: which tokens of a sequence are masked, as a function of who asks and not of the batch.

Shape suffixes: V masks, S positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from unmask.diffusion.counter_rng import uniform


class MaskRates(BaseModel):
    """Options of every objective that draws masks."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    min_rate: float = Field(0.1, ge=0, le=1, description="lowest rate at which tokens are masked")
    max_rate: float = Field(0.9, gt=0, le=1, description="highest rate")

    @model_validator(mode="after")
    def _ordered(self) -> MaskRates:
        if self.min_rate > self.max_rate:
            raise ValueError(f"min_rate {self.min_rate} is above max_rate {self.max_rate}")
        return self

    def between(self, share_VS: np.ndarray) -> np.ndarray:
        """The rates [V, S] at these shares of the way from the lowest to the highest."""
        return self.min_rate + (self.max_rate - self.min_rate) * share_VS


def draw_positions(keys: Sequence[np.ndarray | int], num_masks: int, position_S: np.ndarray) -> np.ndarray:
    """Float64 [V, S], uniform in [0, 1), for each position of each mask.

    keys: numbers that name the sequence (seed, epoch, sample), or one for each position [S] where those of several sequences
    follow each other: equal keys give equal numbers, in whatever batch they are.
    """
    return _uniform(keys, num_masks, position_S)


def draw_blocks(keys: Sequence[np.ndarray | int], num_masks: int, block_start_S: np.ndarray) -> np.ndarray:
    """Float64 [V, S], uniform in [0, 1), the same at all positions of a block and independent of `draw_positions`.

    block_start_S: the first position of each position's block.
    """
    return _uniform(keys, num_masks, -1 - block_start_S)


def _uniform(keys: Sequence[np.ndarray | int], num_masks: int, cell_S: np.ndarray) -> np.ndarray:
    mask_V1 = np.arange(num_masks)[:, None]
    numbers = np.broadcast_arrays(*(np.reshape(key, (1, -1)) for key in keys), mask_V1, cell_S)
    return uniform(*(torch.from_numpy(np.ascontiguousarray(n, dtype=np.int64)) for n in numbers)).numpy()

"""Masks drawn at random: which tokens of a sequence are masked, as a function of who asks and not of the batch.

Shape suffixes: I sequences, V masks, S positions.
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


def draw_masks(
    keys: Sequence[np.ndarray | int], num_masks: int, position_IS: np.ndarray, block_start_IS: np.ndarray,
    min_rate: float, max_rate: float,
) -> np.ndarray:  # fmt: skip
    """Bool [I, V, S]: is the position masked? Each block of each mask has a rate of its own, U(min_rate, max_rate).

    keys: numbers, or one for each sequence [I], that name it (seed, epoch, sample): equal keys give equal masks.
    block_start_IS: the first position of each position's block.
    """
    mask_V1 = np.arange(num_masks)[:, None]
    cells = np.stack((position_IS, -1 - block_start_IS))[:, :, None]  # the second ones give the rates of blocks
    named = [np.reshape(key, (-1, 1, 1)) for key in keys]
    numbers = np.broadcast_arrays(*named, mask_V1, cells)
    draw_IVS, rate_IVS = uniform(*(torch.from_numpy(np.ascontiguousarray(n, dtype=np.int64)) for n in numbers)).numpy()
    return draw_IVS < min_rate + (max_rate - min_rate) * rate_IVS

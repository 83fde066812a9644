"""Coupled masks: each drawn mask with its complement, so that every response token is trained exactly once by the pair.

DiffuCoder's coupled GRPO (arXiv 2506.20639); a baseline of the TraceRL paper.
"""

from __future__ import annotations

import numpy as np

from unmask.objectives.random_masking import RandomMasking
from unmask.types import Rollout


class Coupled(RandomMasking):
    """As random masking, with the complement of every mask."""

    def masks(self, rollout: Rollout, draw: int, block_S: np.ndarray) -> np.ndarray:
        is_masked_VS = super().masks(rollout, draw, block_S)
        return np.concatenate((is_masked_VS, ~is_masked_VS))

"""A remasking strategy that imposes how many tokens a denoising step unmasks, whatever the model thinks of them.

Random weights are never confident; measured speed would say nothing about a trained model's step pattern.

Shape suffixes: B rows, T positions of the block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unmask.diffusion.remasking import StepScores


class ImposedSteps:
    """Each block of b tokens takes b / tokens_per_step denoising steps on average.

    A block takes that number rounded down or up, drawn from the sequence's own random numbers, and unmasks equal parts.
    The draw is written into the masks, as a strategy keeps no state: blocks with fewer steps are unmasked from the left,
    the others from the right. A block headed by the prompt's tail counts as begun, with fewer steps.
    """

    def __init__(self, block_size: int, tokens_per_step: float):
        fewest, self.share_of_more = divmod(block_size / tokens_per_step, 1)
        self.block_size = block_size
        self.num = torch.tensor([_num_by_left(block_size, int(fewest) + more) for more in (0, 1)])

    def select(self, scores: StepScores, quota_B: Tensor, params: Any) -> Tensor:
        is_masked_BT = scores.is_masked_BT
        self.num = self.num.to(is_masked_BT.device)
        left_B, is_last_masked_B = is_masked_BT.sum(1), is_masked_BT[:, -1]
        takes_more_B = torch.where(left_B == self.block_size, scores.uniform_BT[:, -1] < self.share_of_more, ~is_last_masked_B)
        num_B1 = self.num[takes_more_B.long(), left_B][:, None]
        from_left_BT = is_masked_BT.cumsum(1) <= num_B1
        from_right_BT = is_masked_BT.flip(1).cumsum(1).flip(1) <= num_B1
        return torch.where(takes_more_B[:, None], from_right_BT, from_left_BT) & is_masked_BT


def _num_by_left(block_size: int, num_steps: int) -> list[int]:
    """How many of 0, 1, .. block_size masks left the next of num_steps equal steps unmasks."""
    ends = [i * block_size // num_steps for i in range(1, num_steps + 1)]
    return [0] + [next(end for end in ends if end > block_size - n) - (block_size - n) for n in range(1, block_size + 1)]

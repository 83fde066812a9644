"""Remasking strategies: which of the drawn tokens of a denoising step stay unmasked (the others are masked again).

Contract, for every strategy (`select`):
- rows are independent; only positions with `is_masked` may be chosen;
- `quota_B` >= 1 is the number asked for; never more masks are chosen than are left, and at least one in a row that has any;
- ties go to the smallest index. Scores closer than `TIE` are tied: positions can have mathematically equal scores (a block
  of masks with nothing before it), and then float rounding, which depends on the batch, must not decide.

Shape suffixes: B rows, T positions of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unmask.errors import UnmaskError
from unmask.types import SamplingParams

TIE = 1e-5


@dataclass(slots=True)
class StepScores:
    """What a denoising step knows about its positions; entries where `is_masked_BT` is false are meaningless.

    confidence_BT: the model's probability of the drawn token, before temperature and filtering.
    entropy_BT: entropy of the model's distribution, nats.
    uniform_BT: float64 in [0, 1) from the sequence's own seed.
    """

    is_masked_BT: Tensor
    confidence_BT: Tensor
    entropy_BT: Tensor
    uniform_BT: Tensor


class RemaskingStrategy(Protocol):
    def select(self, scores: StepScores, quota_B: Tensor, params: SamplingParams) -> Tensor:
        """Bool [B, T]: the positions that stay unmasked."""
        ...


def best_masked(score_BT: Tensor, is_masked_BT: Tensor, num_B: Tensor) -> Tensor:
    """The num_B[i] masked positions with the highest score (all if fewer are left); ties to the smallest index.

    Picked one after another: among the scores within `TIE` of the best one left, the smallest index.
    """
    left_BT, chosen_BT = is_masked_BT, torch.zeros_like(is_masked_BT)
    for i in range(score_BT.shape[1]):
        wanted_B1 = (num_B > i)[:, None]
        if i and not bool((wanted_B1 & left_BT).any()):
            break
        score_left_BT = score_BT.masked_fill(~left_BT, -torch.inf)
        is_best_BT = left_BT & (score_left_BT >= score_left_BT.amax(1, keepdim=True) - TIE)
        pick_BT = is_best_BT & (is_best_BT.cumsum(1) == 1) & wanted_B1
        chosen_BT, left_BT = chosen_BT | pick_BT, left_BT & ~pick_BT
    return chosen_BT


class LowConfidenceStatic:
    """The `quota` most confident."""

    def select(self, scores: StepScores, quota_B: Tensor, params: SamplingParams) -> Tensor:
        return best_masked(scores.confidence_BT, scores.is_masked_BT, quota_B)


class LowConfidenceDynamic:
    """All with confidence strictly greater than `confidence_threshold`; if fewer than the quota, the quota most confident."""

    def select(self, scores: StepScores, quota_B: Tensor, params: SamplingParams) -> Tensor:
        passes_BT = (scores.confidence_BT > params.confidence_threshold) & scores.is_masked_BT
        best_BT = best_masked(scores.confidence_BT, scores.is_masked_BT, quota_B)
        return torch.where((passes_BT.sum(1) >= quota_B)[:, None], passes_BT, best_BT)


class Sequential:
    """The `quota` leftmost."""

    def select(self, scores: StepScores, quota_B: Tensor, params: SamplingParams) -> Tensor:
        return (scores.is_masked_BT.cumsum(1) <= quota_B[:, None]) & scores.is_masked_BT


class Random:
    """`quota` drawn uniformly without replacement."""

    def select(self, scores: StepScores, quota_B: Tensor, params: SamplingParams) -> Tensor:
        return best_masked(scores.uniform_BT, scores.is_masked_BT, quota_B)


class EntropyBounded:
    """By entropy, ascending: the longest prefix whose cumulative entropy stays below `entropy_bound`; at least one."""

    def select(self, scores: StepScores, quota_B: Tensor, params: SamplingParams) -> Tensor:
        entropy_BT = scores.entropy_BT.masked_fill(~scores.is_masked_BT, torch.inf)
        cumulative_BT = entropy_BT.sort(dim=1, stable=True).values.cumsum(1)
        num_B = (cumulative_BT < params.entropy_bound).sum(1).clamp(min=1)
        return best_masked(-scores.entropy_BT, scores.is_masked_BT, num_B)


STRATEGIES: dict[str, RemaskingStrategy] = {
    "low_confidence_static": LowConfidenceStatic(),
    "low_confidence_dynamic": LowConfidenceDynamic(),
    "sequential": Sequential(),
    "random": Random(),
    "entropy_bounded": EntropyBounded(),
}


def get_strategy(name: str) -> RemaskingStrategy:
    if name not in STRATEGIES:
        raise UnmaskError(f"unknown remasking_strategy {name!r}; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]

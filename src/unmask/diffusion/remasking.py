"""Remasking strategies: which of the drawn tokens of a denoising step stay unmasked (the others are masked again).

Contract, for every strategy (`select`):
- rows are independent; only positions with `is_masked` may be chosen;
- `quota_B` is the number asked for; never more masks are chosen than are left, and at least one in a row that has any.
  Only the strategies that take exactly the quota may take none, when a schedule asks for 0;
- ties go to the smallest index. Scores closer than `TIE` are tied: positions can have mathematically equal scores (a block
  of masks with nothing before it), and then float rounding, which depends on the batch, must not decide;
- the threshold of block models is compared with "strictly greater", that of full-attention models with "at least".

`params` are the settings of the rows: one `SamplingParams`, or the same names with a tensor [B, 1] where rows differ.

Shape suffixes: B rows, T positions of the block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unmask.errors import UnmaskError

TIE = 1e-5


@dataclass(slots=True)
class StepScores:
    """What a denoising step knows about its positions; entries where `is_masked_BT` is false are meaningless.

    score_BT: what the rows rank by: confidence, margin or negative entropy (`SamplingParams.score`), all of the model's
        distribution before temperature and filtering. Confidence is the probability of the drawn token.
    entropy_BT: entropy of that distribution, nats; zeros where no row's strategy `needs_entropy`.
    uniform_BT: float64 in [0, 1) from the sequence's own seed.
    max_quota: no entry of `quota_B` is larger (known without asking the device); None = the number of positions.
    is_inclusive: a score equal to the threshold passes (full attention).
    """

    is_masked_BT: Tensor
    score_BT: Tensor
    entropy_BT: Tensor
    uniform_BT: Tensor
    max_quota: int | None = None
    is_inclusive: bool = False

    def order(self, alg_temp: float | Tensor) -> Tensor:
        """Scores to sort by [B, T]. With alg_temp > 0, the best n are n draws without replacement by softmax(score / alg_temp).

        The Gumbel trick: Kool et al. 2019, section 2.3.
        """
        if not isinstance(alg_temp, Tensor) and alg_temp == 0:
            return self.score_BT
        alg_temp = torch.as_tensor(alg_temp, device=self.score_BT.device)
        gumbel_BT = -torch.log(-torch.log(self.uniform_BT.clamp(min=1e-300)))
        drawn_BT = self.score_BT / torch.where(alg_temp > 0, alg_temp, 1.0) + gumbel_BT
        return torch.where(alg_temp > 0, drawn_BT, self.score_BT.double())


class RemaskingStrategy(Protocol):
    """A strategy that reads `entropy_BT` has an attribute `needs_entropy = True`."""

    def select(self, scores: StepScores, quota_B: Tensor, params: Any) -> Tensor:
        """Bool [B, T]: the positions that stay unmasked."""
        ...


def best_masked(score_BT: Tensor, is_masked_BT: Tensor, num_B: Tensor, max_num: int | None = None) -> Tensor:
    """The num_B[i] masked positions with the highest score (all if fewer are left); ties to the smallest index.

    Picked one after another: among the scores within `TIE` of the best one left, the smallest index. max_num bounds num_B.
    """
    left_BT, chosen_BT = is_masked_BT, torch.zeros_like(is_masked_BT)
    num_positions = score_BT.shape[1]
    for i in range(num_positions if max_num is None else min(max_num, num_positions)):
        wanted_B1 = (num_B > i)[:, None]
        score_left_BT = score_BT.masked_fill(~left_BT, -torch.inf)
        is_best_BT = left_BT & (score_left_BT >= score_left_BT.amax(1, keepdim=True) - TIE)
        pick_BT = is_best_BT & (is_best_BT.cumsum(1) == 1) & wanted_B1
        chosen_BT, left_BT = chosen_BT | pick_BT, left_BT & ~pick_BT
    return chosen_BT


class LowConfidenceStatic:
    """The `quota` best scores."""

    def select(self, scores: StepScores, quota_B: Tensor, params: Any) -> Tensor:
        return best_masked(scores.order(params.alg_temp), scores.is_masked_BT, quota_B, scores.max_quota)


class LowConfidenceDynamic:
    """All scores that pass `confidence_threshold`; if fewer than the quota do, the `quota` best (at least one)."""

    def select(self, scores: StepScores, quota_B: Tensor, params: Any) -> Tensor:
        quota_B = quota_B.clamp(min=1)
        passes = torch.ge if scores.is_inclusive else torch.gt
        passes_BT = passes(scores.score_BT, params.confidence_threshold) & scores.is_masked_BT
        best_BT = best_masked(
            scores.order(params.alg_temp),
            scores.is_masked_BT,
            quota_B,
            None if scores.max_quota is None else max(1, scores.max_quota),
        )
        return torch.where((passes_BT.sum(1) >= quota_B)[:, None], passes_BT, best_BT)


class Sequential:
    """The `quota` leftmost."""

    def select(self, scores: StepScores, quota_B: Tensor, params: Any) -> Tensor:
        return (scores.is_masked_BT.cumsum(1) <= quota_B[:, None]) & scores.is_masked_BT


class Random:
    """`quota` drawn uniformly without replacement."""

    def select(self, scores: StepScores, quota_B: Tensor, params: Any) -> Tensor:
        return best_masked(scores.uniform_BT, scores.is_masked_BT, quota_B, scores.max_quota)


class EntropyBounded:
    """By entropy, ascending: the longest prefix whose cumulative entropy stays below `entropy_bound`; at least one."""

    needs_entropy = True

    def select(self, scores: StepScores, quota_B: Tensor, params: Any) -> Tensor:
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

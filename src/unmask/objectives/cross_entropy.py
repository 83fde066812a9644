"""What the SFT objectives share: the loss."""

from __future__ import annotations

from torch import Tensor

from unmask.objectives.fused_head import TargetStats
from unmask.objectives.rows import RowBatch


def cross_entropy(stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy over the vocabulary in nats under the batch's "weight", and sums for the metrics."""
    weight_N = batch.values["weight"]
    return -(weight_N * stats.logprobs_N).sum(), {"token_accuracy": (weight_N * stats.is_top_N).sum()}

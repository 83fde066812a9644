"""What the SFT objectives share: how tokens are averaged, and the loss."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unmask.objectives.fused_head import TargetStats
from unmask.objectives.rows import RowBatch


class SftOptions(BaseModel):
    """Options of every SFT objective. Some know further ways of averaging."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    loss_normalization: Literal["token", "sequence", "constant"] = Field("token", description="how tokens are averaged")
    constant_length: int = Field(256, ge=1, description="the divisor of loss_normalization = constant")


def cross_entropy(stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy over the vocabulary in nats under the batch's "weight", and sums for the metrics."""
    weight_N = batch.values["weight"]
    return -(weight_N * stats.logprobs_N).sum(), {"token_accuracy": (weight_N * stats.is_top_N).sum()}

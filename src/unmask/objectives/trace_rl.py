"""TraceRL's policy objective: PPO's clipped ratio on the tokens of every trace step, plus a KL penalty.

Paper eq. 3 (arXiv 2509.06949), with rho = pi(token | view) / pi_old(token | view):

    J = E[ sum_t 1/|tau(t)| sum_{k in tau(t)} min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) ] - beta KL

| paper | here |
|---|---|
| tau(t), trace step | a (block, step) pair; after `trace_shrink`: merged neighbours |
| s | `trace_shrink` |
| epsilon | `clip_eps_low`, `clip_eps_high` |
| beta | `kl_beta` |
| A_i | `Rollout.advantage` |
| pi_old | `old_logprobs`: the sampler's own, or recomputed before the update |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unmask.models import ModelSpec
from unmask.objectives.rows import RowBatch, TrainRow
from unmask.objectives.trace_views import trace_row
from unmask.types import Rollout

MAX_LOG_RATIO = 10.0  # exp beyond this only makes infinities; clipping has long taken over


def kl_estimate(new_N: Tensor, old_N: Tensor, kind: str) -> Tensor:
    """Per-token estimates of KL(new || old) (Schulman, "Approximating KL divergence").

    With d = new - old (log-probs): k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d. Their means are that divergence (k2: nearly)
    for tokens drawn under new; rollouts come from old, so they are close to it only while the two are.
    """
    d_N = new_N - old_N
    if kind == "k1":
        return d_N
    if kind == "k2":
        return d_N.square() / 2
    return torch.exp((-d_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)) - 1 + d_N


class TraceRL:
    """Rows and loss of TraceRL. Rollouts with advantage 0 train nothing and get no row."""

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

        trace_shrink: int = Field(1, ge=1, description="merge this many neighbouring steps of a block; 1 = exact")
        clip_eps_low: float = Field(0.2, gt=0, description="the ratio is clipped below at 1 minus this")
        clip_eps_high: float = Field(0.2, gt=0, description="the ratio is clipped above at 1 plus this")
        kl_beta: float = Field(0.01, ge=0, description="weight of the KL penalty; 0 = none")
        kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="per-token estimate of the KL")
        loss_normalization: Literal["trace_step", "token", "sequence", "constant"] = Field(
            "trace_step", description="how tokens are averaged; trace_step is the paper's"
        )
        constant_length: int = Field(256, ge=1, description="the divisor of loss_normalization = constant")

    def __init__(self, options: Options, spec: ModelSpec):
        self.options, self.mask_token_id = options, spec.mask_token_id
        self.has_sampler_views = options.trace_shrink == 1

    def rows(self, rollouts: Sequence[Rollout], num_sequences: int) -> list[TrainRow]:
        """One row per rollout with a non-zero advantage; "weight" makes the loss a sum over the update's targets.

        num_sequences: what the mean over responses divides by (the caller says which responses take part in it).
        """
        rows = []
        for rollout in rollouts:
            row = trace_row(rollout.trace, self.mask_token_id, trace_shrink=self.options.trace_shrink)
            if row is None or rollout.advantage == 0:
                continue
            row.values["advantage"] = np.full(len(row.target_ids), rollout.advantage)
            rows.append(row)
        num_tokens = sum(len(row.target_ids) for row in rows)
        for row in rows:
            n = len(row.target_ids)
            kind = self.options.loss_normalization
            if kind == "trace_step":  # mean over each step's tokens, sum over steps, mean over responses
                weight = 1.0 / np.bincount(row.values["step"])[row.values["step"]] / num_sequences
            elif kind == "token":
                weight = np.full(n, 1.0 / num_tokens)
            elif kind == "sequence":
                weight = np.full(n, 1.0 / n / num_sequences)
            else:
                weight = np.full(n, 1.0 / self.options.constant_length / num_sequences)
            row.values["weight"] = weight
        return rows

    def loss(self, logprobs_N: Tensor, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative objective of the batch, and weighted sums for the metrics (weights add up over micro-batches)."""
        o = self.options
        old_N, advantage_N, weight_N = (batch.values[k] for k in ("old_logprobs", "advantage", "weight"))
        ratio_N = torch.exp((logprobs_N - old_N).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO))
        clipped_N = ratio_N.clamp(1 - o.clip_eps_low, 1 + o.clip_eps_high)
        surrogate_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
        kl_N = kl_estimate(logprobs_N, old_N, o.kl_estimator)
        loss = -(weight_N * (surrogate_N - o.kl_beta * kl_N)).sum()
        with torch.no_grad():
            is_clipped_N = (ratio_N * advantage_N > clipped_N * advantage_N).float()
            sums = {
                "num_targets": torch.tensor(float(len(logprobs_N))),
                "kl_sum": kl_estimate(logprobs_N, old_N, "k3").sum(),
                "clip_sum": is_clipped_N.sum(),
                "neg_logprob_sum": -logprobs_N.sum(),
            }
        return loss, sums

"""What the policy objectives share: PPO's clipped ratio on target tokens, a KL penalty, and how tokens are averaged.

TraceRL paper, eq. 3 (arXiv 2509.06949), with rho = pi(token | view) / pi_old(token | view):

    J = E[ sum_t 1/|tau(t)| sum_{k in tau(t)} w min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) ] - beta KL

| paper | here |
|---|---|
| tau(t), trace step | a view: a live (block, step) pair, merged by `trace_shrink`; or one drawn mask |
| epsilon | `clip_eps_low`, `clip_eps_high` |
| beta | `kl_beta` |
| A_i | `Rollout.advantage`, or `Rollout.token_advantages` with a value model |
| pi_old | `old_logprobs`: the sampler's own, or recomputed before the update |
| (not there) | w: min(pi_old / pi_sampler, `importance_cap`), where the sampler's arithmetic or weights are not the trainer's |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unmask.models import ModelSpec
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.rows import RowBatch, TrainRow, name_rows, set_weights
from unmask.types import Rollout

MAX_LOG_RATIO = 10.0


def expm1(x: Tensor) -> Tensor:
    """exp(x) - 1, exact near 0; beyond `MAX_LOG_RATIO` a line goes on with its slope: no infinity, and no gradient is lost."""
    line = math.exp(MAX_LOG_RATIO) * (x - MAX_LOG_RATIO + 1) - 1
    return torch.where(x > MAX_LOG_RATIO, line, torch.expm1(x.clamp(max=MAX_LOG_RATIO)))


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
    return expm1(-d_N) + d_N


class PolicyOptions(BaseModel):
    """Options of every policy objective."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    block_size: int | None = Field(
        None, ge=1, description="block models: of the views that are trained; None = the one the rollouts were decoded with"
    )
    clip_eps_low: float = Field(0.2, gt=0, description="the ratio is clipped below at 1 minus this")
    clip_eps_high: float = Field(0.2, gt=0, description="the ratio is clipped above at 1 plus this")
    kl_beta: float = Field(0.01, ge=0, description="weight of the KL penalty; 0 = none")
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="per-token estimate of the KL")
    kl_to: Literal["old", "reference"] = Field(
        "old", description="the KL is to the policy before the step's updates, or to the frozen model of [reference]"
    )
    loss_normalization: Literal["trace_step", "token", "sequence", "constant"] = Field(
        "trace_step", description="how tokens are averaged; trace_step is the paper's"
    )
    constant_length: int = Field(256, ge=1, description="the divisor of loss_normalization = constant")
    importance_cap: float = Field(
        2.0,
        ge=0,
        description="bound of the weights that correct a sampler whose arithmetic is not the trainer's, or whose weights are "
        "older; 0 = none",
    )


class PolicyObjective:
    """Rows and loss of a policy objective; a subclass says in `views` which states of a response are trained."""

    has_sampler_views = False

    def __init__(self, options: PolicyOptions, spec: ModelSpec):
        self.options, self.spec = options, spec

    def views(self, rollout: Rollout, draw: int) -> list[TrainRow]:
        """Rows of one response, with "canvas_index" and "view" in their values."""
        raise NotImplementedError

    def rows(self, rollouts: Sequence[Rollout], num_sequences: int, draw: int = 0) -> list[TrainRow]:
        """Rows of the rollouts that have an advantage; "weight" makes the loss a sum over the update's targets.

        num_sequences: what the mean over responses divides by (the caller says which responses take part in it).
        draw: number of the pass over these rollouts; objectives that draw masks draw others in each.
        """
        rows_of = []
        for rollout in rollouts:
            if rollout.token_advantages is None and rollout.advantage == 0:
                continue
            rows_of.append(name_rows(self.views(rollout, draw), rollout.name))
            for row in rows_of[-1]:
                if rollout.token_advantages is None:
                    row.values["advantage"] = np.full(len(row.target_ids), rollout.advantage)
                else:
                    row.values["advantage"] = rollout.token_advantages[row.values["canvas_index"]]
                if self.has_sampler_views:
                    row.values["old_logprobs"] = row.values["rollout_logprobs"]
        set_weights(rows_of, self.options.loss_normalization, self.options.constant_length, num_sequences)
        return [row for rows in rows_of for row in rows]

    def loss(self, stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Negative objective of the batch, and sums for the metrics (weights add up over micro-batches)."""
        o, new_N = self.options, stats.logprobs_N
        old_N, advantage_N, weight_N = (batch.values[k] for k in ("old_logprobs", "advantage", "weight"))
        ratio_N = 1 + expm1(new_N - old_N)
        clipped_N = ratio_N.clamp(1 - o.clip_eps_low, 1 + o.clip_eps_high)
        surrogate_N = torch.minimum(ratio_N * advantage_N, clipped_N * advantage_N)
        if self.has_sampler_views and o.importance_cap:
            log_importance_N = old_N - batch.values["rollout_logprobs"]
            surrogate_N = surrogate_N * log_importance_N.exp().clamp(max=o.importance_cap)
        kl_N = kl_estimate(new_N, batch.values["ref_logprobs"] if o.kl_to == "reference" else old_N, o.kl_estimator)
        loss = -(weight_N * (surrogate_N - o.kl_beta * kl_N)).sum()
        with torch.no_grad():
            is_clipped_N = (ratio_N * advantage_N > clipped_N * advantage_N).float()
            sums = {
                "num_targets": torch.tensor(float(len(new_N))),
                "kl_sum": kl_estimate(new_N, old_N, "k3").sum(),
                "clip_sum": is_clipped_N.sum(),
                "entropy_sum": stats.entropy_N.sum(),
                "neg_logprob_sum": -new_N.sum(),
            }
            if o.kl_to == "reference":
                sums["ref_kl_sum"] = kl_estimate(new_N, batch.values["ref_logprobs"], "k3").sum()
            if self.has_sampler_views and o.importance_cap:
                sums["truncated_sum"] = (log_importance_N > math.log(o.importance_cap)).float().sum()
            if self.has_sampler_views:
                # In the first update of a step, whose weights are those that sampled, this is the sampler's mismatch
                # (of old rollouts: with what the weights have changed since).
                sums["mismatch_sum"] = kl_estimate(new_N, batch.values["rollout_logprobs"], "k3").sum()
        return loss, sums

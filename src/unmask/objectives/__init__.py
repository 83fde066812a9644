"""Objectives: how examples and rollouts become training rows, and the loss on them.

`SFT_OBJECTIVES` take demonstrations, `RL_OBJECTIVES` take rollouts; both hand `TrainRow`s to the one Trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from unmask.config import Plugin, make_plugin
from unmask.models import Decoder
from unmask.objectives.rows import RowBatch, TrainRow
from unmask.objectives.semi_ar import SemiAR
from unmask.objectives.trace_rl import TraceRL
from unmask.types import Demonstration, Rollout


class SftObjective(Protocol):
    """A class `(options: Options, spec: ModelSpec, seed: int)` with a pydantic model `Options` inside."""

    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]:
        """Rows of one optimizer step, with all the loss needs in their `values`. Demonstrations may yield no row."""
        ...

    def loss(self, logits_NV: Tensor, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a part of the step's rows (parts add up), and sums for the metrics."""
        ...


class RlObjective(Protocol):
    """A class `(options: Options, spec: ModelSpec)` with a pydantic model `Options` inside."""

    has_sampler_views: bool  # its rows show what the sampler saw, so the sampler's log-probs can serve as the old ones

    def rows(self, rollouts: Sequence[Rollout], num_sequences: int) -> list[TrainRow]:
        """Rows of one optimizer step, with "old_logprobs" among their `values` (the sampler's; the loop replaces them by
        the trainer's where they cannot serve). `num_sequences` is what a mean over responses divides by."""
        ...

    def loss(self, logprobs_N: Tensor, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a part of the step's rows (parts add up), and the sums `num_targets`, `kl_sum`, `clip_sum` and
        `neg_logprob_sum` over its targets."""
        ...


SFT_OBJECTIVES: dict[str, Any] = {"semi_ar": SemiAR}
RL_OBJECTIVES: dict[str, Any] = {"trace_rl": TraceRL}


def make_sft_objective(plugin: Plugin, model: Decoder, seed: int) -> SftObjective:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(SFT_OBJECTIVES, plugin, "objective", model.spec, seed)


def make_rl_objective(plugin: Plugin, model: Decoder) -> RlObjective:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(RL_OBJECTIVES, plugin, "objective", model.spec)

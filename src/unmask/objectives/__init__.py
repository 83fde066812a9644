"""Objectives: how examples and rollouts become training rows, and the loss on them.

`SFT_OBJECTIVES` take demonstrations, `RL_OBJECTIVES` take rollouts; both hand `TrainRow`s to the one Trainer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from unmask.config import Plugin, make_plugin
from unmask.models import Decoder
from unmask.objectives.ar import Autoregressive
from unmask.objectives.coupled import Coupled
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.random_masking import RandomMasking
from unmask.objectives.random_masking_sft import RandomMaskingSft
from unmask.objectives.rows import RowBatch, TrainRow
from unmask.objectives.semi_ar import SemiAR
from unmask.objectives.trace_rl import TraceRL
from unmask.objectives.trace_sft import TraceSft
from unmask.types import Demonstration, Rollout


class SftObjective(Protocol):
    """A class `(options: Options, spec: ModelSpec, seed: int)` with a pydantic model `Options` inside."""

    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]:
        """Rows of one optimizer step, with all the loss needs in their `values`. Demonstrations may yield no row."""
        ...

    def loss(self, stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a part of the step's rows (parts add up), and sums for the metrics."""
        ...


class RlObjective(Protocol):
    """A class `(options: Options, spec: ModelSpec)` with a pydantic model `Options` inside."""

    has_sampler_views: bool  # its rows show what the sampler saw, so the sampler's log-probs can serve as the old ones

    def rows(self, rollouts: Sequence[Rollout], num_sequences: int, draw: int = 0) -> list[TrainRow]:
        """Rows of one optimizer step. With `has_sampler_views`, "old_logprobs" and "rollout_logprobs" among their `values`
        are the sampler's; else, and where they cannot serve, the loop sets "old_logprobs" to the trainer's.
        `num_sequences` is what a mean over responses divides by, `draw` the number of the pass over them."""
        ...

    def loss(self, stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a part of the step's rows (parts add up), and sums over its targets: `num_targets`, `kl_sum`,
        `clip_sum`, `entropy_sum`, `neg_logprob_sum`, and where they have a meaning `ref_kl_sum` and `mismatch_sum`."""
        ...


SFT_OBJECTIVES: dict[str, Any] = {
    "semi_ar": SemiAR, "random_masking": RandomMaskingSft, "trace": TraceSft, "ar": Autoregressive,
}  # fmt: skip
RL_OBJECTIVES: dict[str, Any] = {"trace_rl": TraceRL, "random_masking": RandomMasking, "coupled": Coupled}


def make_sft_objective(plugin: Plugin, model: Decoder, seed: int) -> SftObjective:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(SFT_OBJECTIVES, plugin, "objective", model.spec, seed)


def make_rl_objective(plugin: Plugin, model: Decoder) -> RlObjective:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(RL_OBJECTIVES, plugin, "objective", model.spec)

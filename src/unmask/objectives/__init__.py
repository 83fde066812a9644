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
from unmask.objectives.semi_ar import Demonstration, SemiAR
from unmask.objectives.trace_rl import TraceRL
from unmask.types import Rollout


class SftObjective(Protocol):
    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]: ...

    def loss(self, logits_NV: Tensor, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]: ...


class RlObjective(Protocol):
    def rows(self, rollouts: Sequence[Rollout], num_sequences: int) -> list[TrainRow]: ...

    def loss(self, logprobs_N: Tensor, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]: ...


SFT_OBJECTIVES: dict[str, Any] = {"semi_ar": SemiAR}
RL_OBJECTIVES: dict[str, Any] = {"trace_rl": TraceRL}


def make_sft_objective(plugin: Plugin, model: Decoder, seed: int) -> SftObjective:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(SFT_OBJECTIVES, plugin, "objective", model.spec, seed)


def make_rl_objective(plugin: Plugin, model: Decoder) -> RlObjective:
    """Raises `UnmaskError` for an unknown name or option."""
    return make_plugin(RL_OBJECTIVES, plugin, "objective", model.spec)

"""Autoregressive SFT: every response token from those before it, with causal attention and nothing masked.

For models that were adapted from autoregressive ones (Dream), and the first stage of adapting one. Causal attention is the
mask rule with blocks of one token. A family whose logits are shifted (Dream) predicts a token where it stands, all others
where the token before it stands.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from unmask.attention import CLEAN
from unmask.models import ModelSpec
from unmask.objectives.cross_entropy import SftOptions, cross_entropy
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.rows import RowBatch, TrainRow, set_weights
from unmask.types import Demonstration


class Autoregressive:
    """One row per demonstration."""

    Options = SftOptions

    def __init__(self, options: SftOptions, spec: ModelSpec, seed: int):
        self.options, self.spec = options, spec

    def rows(self, items: Sequence[Demonstration]) -> list[TrainRow]:
        """Rows with "weight" of every target; weights refer to all of `items`."""
        rows = [row for row in map(self._row, items) if len(row.target_ids)]
        set_weights([[row] for row in rows], self.options.loss_normalization, self.options.constant_length, len(items))
        return rows

    def loss(self, stats: TargetStats, batch: RowBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return cross_entropy(stats, batch)

    def _row(self, item: Demonstration) -> TrainRow:
        ids = np.array([*item.prompt_ids, *item.response_ids], dtype=np.int64)
        position = np.arange(len(ids))
        target = position[max(1, len(item.prompt_ids)) :]  # the very first token follows nothing
        column = target if self.spec.shift_logits else target - 1
        values = {"canvas_index": target - len(item.prompt_ids), "view": np.zeros_like(target)}
        shared = max(0, len(item.prompt_ids) - 1)
        return TrainRow(ids, position, position, np.full_like(position, CLEAN), column, ids[target], values, shared, item.name)

"""The published losses by our objectives: forward and backward over packs, and what is compared afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.objectives.published import PublishedCase
from unmask.models import Decoder, ValueModel, find_family
from unmask.objectives.coupled import Coupled
from unmask.objectives.policy import PolicyObjective
from unmask.objectives.random_masking import RandomMasking
from unmask.objectives.rows import RowBatch, TrainRow, collate, pack_rows
from unmask.objectives.trace_rl import TraceRL
from unmask.types import Rollout

METHODS = {"TraceRL": TraceRL, "random_masking": RandomMasking, "coupled": Coupled}
MAX_TOKENS = (40, 150)  # rows are split to fit; several sequences in a pack
# Measured: 2e-5, 2e-6, 1e-5, 1e-5. The published float32 numbers differ from a float64 run by up to 5e-5, 7e-6, 3e-5, 3e-5.
LOGPROBS = {"atol": 1e-4, "rtol": 0}
LOSS, ROW_LOSS, GRADIENT = 2e-5, 1e-4, 1e-4


def make_objective(published: PublishedCase, **changes) -> PolicyObjective:
    """The method's own class and loss with the published constants, on the published views.

    Block models: every row of the batch is divided by the padded length of the responses, and the rows are averaged.
    Full attention: by its number of trained tokens, which is our trace_step.
    """
    t = published.training
    method = METHODS[t["method"]]
    options = {
        "clip_eps_low": t["eps"], "clip_eps_high": t["eps"], "kl_beta": t["beta"],
        "kl_estimator": "k3" if t["use_kl_estimator_k3"] else "k1",
        "loss_normalization": "constant" if published.is_block else "trace_step", "constant_length": published.num_canvas,
    }  # fmt: skip
    if published.is_trace:
        options["trace_shrink"] = t["shrink"]

    class OnPublishedViews(method):
        def views(self, rollout: Rollout, draw: int) -> list[TrainRow]:
            return published.views(rollout.trace.seed)

    return OnPublishedViews(method.Options(**{**options, **changes}), published.spec)


class PublishedLoss:
    """The objective's loss; with full attention its KL term is a sum over the tokens of a row, not a mean like the rest.

    It is then composed of two calls: one without KL, and one without advantages under weights of 1 / rows.
    """

    def __init__(self, published: PublishedCase):
        self.is_block, self.num_rows = published.is_block, published.num_rows
        self.objective = make_objective(published)
        if not self.is_block:
            self.kl = self.objective
            self.objective = make_objective(published, kl_beta=0.0)

    def rows(self, rollouts: list[Rollout]) -> list[TrainRow]:
        return self.objective.rows(rollouts, num_sequences=self.num_rows)

    def __call__(self, stats, batch: RowBatch) -> torch.Tensor:
        loss = self.objective.loss(stats, batch)[0]
        if self.is_block:
            return loss
        values = batch.values
        is_in = (values["weight"] != 0).float()  # a weight of 0 leaves a target out
        only_kl = {**values, "advantage": torch.zeros_like(is_in), "weight": is_in / self.num_rows}
        return loss + self.kl.loss(stats, replace(batch, values=only_kl))[0]


def row_losses(loss: PublishedLoss, num_rows: int, stats, batch: RowBatch) -> torch.Tensor:
    """Each published row as a batch of its own: the mean is over one row."""
    row, weight = batch.values["row"], batch.values["weight"]
    one_by_one = [replace(batch, values={**batch.values, "weight": weight * (row == n)}) for n in range(num_rows)]
    return num_rows * torch.stack([loss(stats, one) for one in one_by_one])


def checkpoint_gradients(model: Decoder | ValueModel) -> dict[str, Tensor]:
    """Gradients under the checkpoint's names; a tied head has the embedding's."""
    name_of = find_family(model.config).to_checkpoint_name
    return {name_of(name): p.grad for name, p in model.named_parameters(remove_duplicate=False) if p.grad is not None}


def assert_gradients(model: Decoder | ValueModel, case: PublishedCase, prefix: str) -> None:
    """Every published gradient, to a share of its largest entry, and every norm."""
    got = checkpoint_gradients(model)
    for key, want in case.outputs.items():
        if key.startswith(f"{prefix}grad."):
            name = key.removeprefix(f"{prefix}grad.")
            assert (got[name] - want).abs().max() <= GRADIENT * want.abs().max(), name
    total = case.expected[f"{prefix}grad_global_norm"]
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm().item() == pytest.approx(total, rel=GRADIENT)
    for name, norm in case.expected[f"{prefix}grad_norms"].items():
        if norm is None:
            assert name not in got, name
        else:  # a small one (a bias of keys) is a difference of large numbers
            assert got[name].norm().item() == pytest.approx(norm, rel=GRADIENT, abs=GRADIENT * 0.01 * total), name


def run_packs(
    rows: list[TrainRow], max_tokens: int, score: Callable[[RowBatch], Any], loss_of: Callable[[Any, RowBatch], Tensor]
) -> tuple[float, Any, RowBatch]:
    """Forward and backward of all rows, pack by pack; the loss, and every target's stats and values as one batch.

    score: the targets' stats (a NamedTuple of tensors [K]) or values (a tensor [K]).
    """
    total, all_stats, batches = 0.0, [], []
    for pack in pack_rows(rows, max_tokens):
        batch = collate(pack)
        stats = score(batch)
        loss = loss_of(stats, batch)
        loss.backward()
        total += loss.item()
        all_stats.append(stats)
        batches.append(batch)
    values = {key: torch.cat([batch.values[key] for batch in batches]) for key in batches[0].values}
    if isinstance(all_stats[0], Tensor):
        joined = torch.cat(all_stats).detach()
    else:
        joined = type(all_stats[0])(*(torch.cat(column).detach() for column in zip(*all_stats, strict=True)))
    return total, joined, replace(batches[0], values=values)

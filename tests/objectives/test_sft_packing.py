"""Packs of rows against one row at a time, and the sums of weights, for every SFT objective and kind of model."""

from __future__ import annotations

import functools
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import SPECIAL, make_model
from tests.objectives.test_masked_sft import demonstrations
from unmask.attention import DenseAttention, TiledAttention
from unmask.models import Decoder
from unmask.models.checkpoint import new_model
from unmask.objectives import SFT_OBJECTIVES
from unmask.objectives.rows import TrainRow, collate, pack_rows, score_targets
from unmask.types import Demonstration

CASES = [
    ("semi_ar", {}),
    ("semi_ar", {"block_size": 8, "loss_normalization": "elbo", "num_masks": 2}),
    ("random_masking", {"has_complements": True}),
    ("random_masking", {"rates": "stratified", "loss_normalization": "sequence"}),
    ("trace", {}),
    ("trace", {"loss_normalization": "trace_step", "trace_shrink": 2}),
    ("ar", {}),
]
FAMILIES = ["sdar", "llada", "dream", "mmada"]


@functools.cache
def model_of(family: str) -> Decoder:
    if family == "sdar":
        return make_model()
    spread = {"initializer_range" if family == "dream" else "init_std": 0.15}
    return new_model(f"{family}/tiny", 0, **spread, **SPECIAL)


def items_with_orders() -> list[Demonstration]:
    rng = np.random.default_rng(1)
    return [replace(item, step_map=rng.integers(0, 6, len(item.response_ids)).tolist()) for item in demonstrations(4)]


def loss_and_gradients(objective, model: Decoder, packs, backend) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    total = 0.0
    for pack in packs:
        batch = collate(pack)
        loss = objective.loss(score_targets(model, batch, backend, excludes_mask=False), batch)[0]
        loss.backward()
        total += loss.item()
    return total, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(("family", "case"), list(itertools.product(FAMILIES, CASES)))
def test_packs_are_as_single_rows(family, case) -> None:
    """The loss to 1e-6, each parameter's gradient to 1e-5, relative; single rows through a dense mask."""
    name, options = case
    model = model_of(family)
    objective = SFT_OBJECTIVES[name](SFT_OBJECTIVES[name].Options(**options), model.spec, 0)
    rows = objective.rows(items_with_orders())
    alone, expected = loss_and_gradients(objective, model, [[row] for row in rows], DenseAttention)
    largest = max(gradient.norm() for gradient in expected)
    for max_tokens in (70, 10**6):
        total, gradients = loss_and_gradients(objective, model, pack_rows(rows, max_tokens), TiledAttention)
        assert total == pytest.approx(alone, rel=1e-6)
        for found, wanted in zip(gradients, expected, strict=True):
            assert (found - wanted).norm() <= 1e-5 * max(wanted.norm(), 1e-3 * largest)


def sums_of(rows: list[TrainRow]) -> tuple[float, int]:
    return sum(float(row.values["weight"].sum()) for row in rows), sum(len(row.target_ids) for row in rows)


@pytest.mark.parametrize(("family", "name"), list(itertools.product(FAMILIES, SFT_OBJECTIVES)))
def test_weights_add_up(family, name) -> None:
    """token, sequence: to 1. constant: to targets / length / sequences. trace_step: each view to 1 / sequences."""
    items, made = items_with_orders(), SFT_OBJECTIVES[name]
    options = {"min_rate": 0.6} if "min_rate" in made.Options.model_fields else {}  # no response without a target

    def rows_with(kind: str) -> list[TrainRow]:
        return made(made.Options(loss_normalization=kind, constant_length=50, **options), model_of(family).spec, 0).rows(items)

    for kind in ("token", "sequence"):
        assert sums_of(rows_with(kind))[0] == pytest.approx(1.0)
    total, num = sums_of(rows_with("constant"))
    assert total == pytest.approx(num / 50 / len(items))
    if name == "trace":
        for row in rows_with("trace_step"):
            for view in np.unique(row.values["view"]):
                assert row.values["weight"][row.values["view"] == view].sum() == pytest.approx(1 / len(items))

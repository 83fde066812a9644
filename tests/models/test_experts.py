"""Mixture of experts: the router, the two ways to multiply, and the counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.models.rows import Row, build, random_ids
from unmask.models.experts import (
    MixtureOfExperts,
    expert_balance,
    expert_load,
    grouped_kernel,
    grouped_linear,
    reset_expert_load,
)

MOE = Row("moe", "sdar_moe/tiny")


@pytest.fixture
def layer() -> MixtureOfExperts:
    return next(m for m in build(MOE).modules() if isinstance(m, MixtureOfExperts))


@torch.no_grad()
def test_layer_is_the_plain_sum_over_chosen_experts(layer) -> None:
    x_BLD = torch.randn(2, 7, 64)
    want = torch.zeros_like(x_BLD)
    for b in range(2):
        for i in range(7):
            x = x_BLD[b, i].double()
            probabilities = torch.softmax(layer.router.weight.double() @ x, 0)
            best = sorted(range(8), key=lambda e: -probabilities[e])[: layer.num_active]
            total = sum(probabilities[e] for e in best)
            for e in best:
                gate, up, down = (
                    m[e].double() for m in (layer.experts.gate_proj, layer.experts.up_proj, layer.experts.down_proj)
                )
                want[b, i] += (probabilities[e] / total * (down @ (F.silu(gate @ x) * (up @ x)))).float()
    torch.testing.assert_close(layer(x_BLD, torch.ones(2, 7, dtype=torch.bool)), want, atol=1e-5, rtol=1e-5)


def test_one_kernel_equals_one_expert_at_a_time() -> None:
    """The kernel of GPUs, on the CPU: values and gradients, an expert without tokens included."""
    counts = torch.tensor([3, 0, 5, 2])
    results = []
    for multiply in (grouped_linear, grouped_kernel):
        torch.manual_seed(0)
        x, weight = torch.randn(10, 16, requires_grad=True), torch.randn(4, 8, 16, requires_grad=True)
        out = multiply(x, weight, counts)
        (out * torch.randn(10, 8)).sum().backward()
        results.append((out, x.grad, weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
    assert results[0][2][1].abs().sum() == 0


def test_autocast_reaches_the_experts() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = grouped_linear(torch.randn(4, 16), torch.randn(2, 8, 16), torch.tensor([1, 3]))
    assert out.dtype == torch.bfloat16


@torch.no_grad()
def test_load_counts_real_tokens_only() -> None:
    model = build(MOE)
    assert expert_load(model).tolist() == [[0] * 8] * 3
    model.logits(random_ids(model, 2, 10), lengths=torch.tensor([10, 4]))
    load = expert_load(model)
    assert load.shape == (3, 8)
    assert load.sum(1).tolist() == [14 * 2] * 3  # two active experts for each of 14 tokens
    model.logits(random_ids(model, 1, 5))
    assert expert_load(model).sum(1).tolist() == [19 * 2] * 3  # counts go on until they are reset
    reset_expert_load(model)
    assert expert_load(model).sum() == 0


@torch.no_grad()
def test_balance_is_relative_to_an_even_share() -> None:
    model = build(MOE)
    layers = [m for m in model.modules() if isinstance(m, MixtureOfExperts)]
    for layer in layers:
        layer.load_E = torch.tensor([10] * 8)
    assert expert_balance(expert_load(model)) == {"expert_load_max": 1.0, "expert_load_min": 1.0}
    layers[1].load_E = torch.tensor([80] + [0] * 7)
    assert expert_balance(expert_load(model)) == {"expert_load_max": 8.0, "expert_load_min": 0.0}
    assert expert_load(build(Row("dense", "sdar/tiny"))) is None

"""Parts of a layer on their own."""

from __future__ import annotations

import torch

from tests.conftest import make_model, random_prompts
from unmask.attention import DenseAttention, TiledAttention, TokenLayout
from unmask.models.layers import RMSNorm


def test_the_mean_square_stays_float32_under_autocast() -> None:
    """In bfloat16 it would be off by up to 0.4 %, and the whole layer with it."""
    norm, x = RMSNorm(100, 1e-6), torch.randn(50, 100)
    exact = x / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(norm(x), exact, atol=1e-5, rtol=0)


def test_reading_some_columns_is_reading_all_and_choosing() -> None:
    """Hidden states and gradients, with tokens read twice and in no order."""
    model = make_model()
    ids = torch.tensor(random_prompts([21]))
    layout = TokenLayout.sequences(21, 4, torch.tensor([21]))
    columns = torch.tensor([20, 3, 3, 0, 11])
    weight = torch.randn(5, 48)
    results = []
    for backend in (DenseAttention, TiledAttention):
        for read_N in (None, columns):
            model.zero_grad()
            hidden = model(ids, layout, backend, read_N=read_N)[0]
            hidden = hidden if read_N is not None else hidden[columns]
            (weight * hidden).sum().backward()
            results.append([hidden.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
            results[-1] = [x.clone() for x in results[-1]]
    for other in results[1:]:
        for want, got in zip(results[0], other, strict=True):
            torch.testing.assert_close(got, want, atol=2e-5 * max(1.0, want.abs().max().item()), rtol=0)

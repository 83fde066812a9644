"""The chunked head against a plain table of logits: values, entropy, argmax, gradients, memory."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import make_model
from unmask.diffusion.drawing import draw_logprobs
from unmask.objectives import fused_head
from unmask.objectives.fused_head import target_stats


def head_of(model, bias: bool):
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.randn(model.spec.vocab_size))
    return model


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 512])
@pytest.mark.parametrize(("temperature", "excluded"), [(1.0, None), (1.0, 2), (0.7, 2), (1.6, 39)])
def test_equals_a_table_of_logits(monkeypatch, chunk, bias, temperature, excluded) -> None:
    monkeypatch.setattr(fused_head, "LEAST_CHUNK", chunk)
    monkeypatch.setitem(fused_head.CHUNK_ELEMENTS, "cpu", 1)
    model = head_of(make_model(tie_word_embeddings=False), bias)
    ids = torch.tensor([3, 3, 1, 38, 17, 0])
    weight = torch.randn(6)
    results = []
    for is_fused in (True, False):
        hidden = torch.randn(6, 48, generator=torch.Generator().manual_seed(1)).mul_(3).requires_grad_()
        model.zero_grad()
        if is_fused:
            stats = target_stats(model, hidden, ids, temperature=temperature, excluded_token_id=excluded)
            assert not stats.entropy_N.requires_grad
            logprobs, entropy, is_top = stats
        else:
            table = draw_logprobs(model.head(hidden), temperature=temperature, excluded_token_id=excluded)
            logprobs = table.gather(1, ids[:, None])[:, 0]
            entropy = torch.distributions.Categorical(logits=table.detach()).entropy()
            is_top = (table.argmax(1) == ids).float()
        (weight * logprobs).sum().backward()
        gradients = [hidden.grad, *(p.grad for p in model.lm_head.parameters())]
        results.append((logprobs.detach(), entropy.detach(), is_top, *gradients))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=2e-6 * max(1.0, wanted.abs().max().item()), rtol=0)  # order of sums


def test_a_top_target_is_said_to_be_one() -> None:
    model = make_model()
    hidden = torch.randn(5, 48)
    best = model.head(hidden).argmax(1)
    assert target_stats(model, hidden, best).is_top_N.tolist() == [1.0] * 5
    assert target_stats(model, hidden, (best + 1) % 40).is_top_N.tolist() == [0.0] * 5


def test_log_softmax_stays_in_float32_under_autocast() -> None:
    """Matrix products in bfloat16, sums over the vocabulary not: the probabilities of all tokens add up to 1."""
    model = make_model()
    hidden = torch.randn(1, 48).expand(40, 48) * 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs = target_stats(model, hidden, torch.arange(40)).logprobs_N
    assert logprobs.dtype == torch.float32
    assert logprobs.exp().sum().item() == pytest.approx(1.0, abs=1e-5)
    exact = target_stats(model, hidden, torch.arange(40)).logprobs_N
    assert 0 < (logprobs - exact).abs().max() < 0.1


def test_memory_does_not_grow_with_the_vocabulary(monkeypatch) -> None:
    """The largest tensor that is made is a chunk: seen from the sizes of all results of operations."""
    monkeypatch.setitem(fused_head.CHUNK_ELEMENTS, "cpu", 2**14)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, torch.Tensor) and x.dim() == 2 and x.shape[0] == 16:
                    largest = max(largest, x.numel())
            return out

    model = make_model(vocab_size=20_000)
    hidden = torch.randn(16, 48, requires_grad=True)
    with Watch():
        target_stats(model, hidden, torch.arange(16)).logprobs_N.sum().backward()
    assert 0 < largest <= 2**14 < 16 * 20_000

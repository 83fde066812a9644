"""The mask rule against its definition, token by token, and the settings of the field that it expresses."""

from __future__ import annotations

import pytest
import torch

from unmask.attention import (
    BACKENDS,
    DenseAttention,
    TiledAttention,
    TokenLayout,
    count_visible,
    get_backend,
    tiled,
    visibility,
)  # fmt: skip
from unmask.errors import UnmaskError


def sees(layout: TokenLayout, row: int, q: int, k: int) -> bool:
    fields = (layout.doc_BL, layout.prefix_doc_BL, layout.block_BL, layout.copy_BL)
    doc, prefix, block, copy = (t[row].tolist() for t in fields)
    if doc[k] in (doc[q], prefix[q]) and copy[k] == 0 and block[k] < block[q]:
        return True
    return doc[q] == doc[k] and copy[k] == copy[q] and block[k] == block[q]


def random_layout(rows: int, length: int, seed: int = 0) -> TokenLayout:
    g = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (rows, length), generator=g)

    doc = ints(-1, 2)
    return TokenLayout(doc, ints(0, 4), ints(0, 3), ints(0, 50), torch.where(ints(0, 2) == 0, doc, ints(0, 2)))


def test_visibility_is_the_definition() -> None:
    layout = random_layout(3, 30)
    table = visibility(layout, layout)
    for row in range(3):
        for q in range(30):
            for k in range(30):
                assert bool(table[row, q, k]) == sees(layout, row, q, k)


def test_every_token_sees_itself() -> None:
    layout = random_layout(4, 40, seed=1)
    assert visibility(layout, layout).diagonal(dim1=1, dim2=2).all()  # no empty softmax, padding included


@pytest.mark.parametrize(
    ("block_size", "expected"),
    [
        (1, lambda q, k: k <= q),  # autoregressive
        (4, lambda q, k: k // 4 <= q // 4),  # block-causal
        (100, lambda q, k: True),  # bidirectional
    ],
)
def test_inference_settings(block_size: int, expected) -> None:
    layout = TokenLayout.sequences(11, block_size, torch.tensor([11]))
    table = visibility(layout, layout)[0]
    assert all(bool(table[q, k]) == expected(q, k) for q in range(11) for k in range(11))


def test_padding_is_invisible_to_tokens() -> None:
    layout = TokenLayout.sequences(10, 4, torch.tensor([3, 10, 0]))
    table = visibility(layout, layout)
    assert not table[0, :3, 3:].any()
    assert not table[0, 3:, :3].any()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_executes_the_same_rule_as_dense() -> None:
    """Eager FlexAttention is exact on a CPU (forward only); on GPUs the compiled one is compared in test_gpu.py."""
    q_layout, k_layout = random_layout(2, 24, seed=2), random_layout(2, 24, seed=3)
    k_layout = q_layout.cat(k_layout)  # more keys than queries, as with a cache; every query sees itself
    q, k, v = torch.randn(2, 4, 24, 8), torch.randn(2, 2, 48, 8), torch.randn(2, 2, 48, 8)
    with torch.no_grad():
        dense = DenseAttention(q_layout, k_layout)(q, k, v)
        flex = BACKENDS["flex"](q_layout, k_layout)(q, k, v)
    torch.testing.assert_close(flex, dense, atol=2e-6, rtol=0)  # float32 against float64 accumulation


@pytest.mark.parametrize(("tile", "long"), [(1, 128), (1, 2), (8, 128), (64, 128)])
@pytest.mark.parametrize("length", [1, 7, 40, 130])
def test_tiles_execute_the_same_rule_as_dense(monkeypatch, tile: int, long: int, length: int) -> None:
    """Forward and gradients, with more keys than queries, rows apart, and tokens in no order at all."""
    monkeypatch.setattr(tiled, "TILE", tile)
    monkeypatch.setattr(tiled, "LONG", long)
    for seed in range(6):
        layout = random_layout(2, length, seed=seed)
        keys = layout.cat(random_layout(2, length, seed=seed + 100))
        results = []
        for backend in (DenseAttention, TiledAttention):
            torch.manual_seed(seed)
            q, k, v = (torch.randn(2, h, n, 8, requires_grad=True) for h, n in ((4, length), (2, 2 * length), (2, 2 * length)))
            out = backend(layout, keys)(q, k, v)
            out.backward(torch.randn(out.shape))
            results.append((out.detach(), q.grad, k.grad, v.grad))
        for wanted, got in zip(*results, strict=True):
            torch.testing.assert_close(got, wanted, atol=5e-6, rtol=0)  # float32 sums in another order


def test_tiles_leave_out_what_nobody_sees() -> None:
    """Sixteen sequences in a row: a dense table would have sixteen times the pairs of the sequences themselves."""
    doc = torch.arange(16).repeat_interleave(64)[None]
    position = torch.arange(64).repeat(16)[None]
    layout = TokenLayout(doc, position // 4, torch.zeros_like(doc), position)
    computed = sum(group.is_hidden_TQK.numel() for group in TiledAttention(layout, layout).groups)
    assert computed <= 1.1 * 16 * 64 * 64


@pytest.mark.parametrize(("length", "tile"), [(4_000, 64), (20_000, 128)])
def test_tiles_of_long_sequences_are_larger(length: int, tile: int) -> None:
    """And compute little in vain for it: what tiles of one call are filled up with is most of it."""
    position = torch.arange(length)[None]
    layout = TokenLayout(torch.zeros_like(position), position // 4, torch.zeros_like(position), position)
    groups = TiledAttention(layout, layout).groups
    assert {group.query_TQ.shape[1] for group in groups} == {tile}
    visible = length * (length + 4) // 2
    assert visible <= sum(group.is_hidden_TQK.numel() for group in groups) <= 1.2 * visible


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_float32_and_float64_paths_agree(backend) -> None:
    layout = random_layout(2, 16, seed=4)
    q, k, v = (torch.randn(2, 2, 16, 8) for _ in range(3))
    attend = BACKENDS[backend](layout, layout)
    with torch.no_grad():
        precise = attend(q, k, v)
    torch.testing.assert_close(attend(q.requires_grad_(), k, v), precise, atol=2e-6, rtol=0)


@pytest.mark.parametrize("backend", ["dense", "tiled"])
def test_scores_without_gradient_are_not_rounded_to_float32(backend) -> None:
    """Exact replay rests on it: with peaked attention, float32 scores are off by their size times 6e-8."""
    layout = random_layout(2, 40)
    attend = BACKENDS[backend](layout, layout)
    g = torch.Generator().manual_seed(0)
    q, k, v = (scale * torch.randn(2, 3, 40, 8, generator=g) for scale in (6.0, 6.0, 1.0))
    exact = attend(q.double(), k.double(), v.double())
    with torch.no_grad():
        error = (attend(q, k, v) - exact).abs().max()
    assert error < 1.5e-7  # of the result's own rounding
    assert (attend(q, k, v) - exact).abs().max() > 3 * error


def test_unknown_backend_lists_the_known() -> None:
    with pytest.raises(UnmaskError, match="unknown attention backend 'sparse'; known: auto, dense, tiled, flex"):
        get_backend("sparse", torch.device("cpu"))


def test_a_prompt_is_shared() -> None:
    """Two responses to a prompt of two blocks in one row: each sees the prompt and itself, the prompt sees neither."""
    doc, prefix = [0] * 4 + [1] * 2 + [2] * 2, [0] * 8
    block, copy = [0, 0, 1, 1, 2, 2, 2, 2], [0] * 4 + [1] * 4
    layout = TokenLayout(*(torch.tensor([x]) for x in (doc, block, copy, block, prefix)))
    table = visibility(layout, layout)[0]
    assert table[4:, :4].all()
    assert not table[:4, 4:].any()
    assert table[4:6, 4:6].all()
    assert table[6:, 6:].all()
    assert not table[4:6, 6:].any()
    assert not table[6:, 4:6].any()


@pytest.mark.parametrize("seed", range(5))
def test_what_is_seen_is_counted_without_a_table(seed: int) -> None:
    layout = random_layout(3, 30, seed)
    for row, wanted in enumerate(visibility(layout, layout).sum(2)):
        fields = (layout.doc_BL, layout.prefix_doc_BL, layout.block_BL, layout.copy_BL)
        assert count_visible(*(field[row].numpy() for field in fields)).tolist() == wanted.tolist()

"""Shifted logits in any layout: against a search for the token before, one token at a time."""

from __future__ import annotations

import random

import torch

from unmask.attention import PAD_DOC, TokenLayout
from unmask.models.shift import shift_sources


def shift_hidden(hidden, layout):
    return hidden.gather(1, shift_sources(layout)[:, :, None].expand_as(hidden))


def plain_shift(hidden, layout):
    out = hidden.clone()
    for row in range(len(hidden)):
        fields = (layout.doc_BL, layout.copy_BL, layout.position_BL)
        tokens = list(zip(*(t[row].tolist() for t in fields), strict=True))
        prefix = layout.prefix_doc_BL[row].tolist()
        for i, (doc, copy, position) in enumerate(tokens):
            if position == 0 or doc == PAD_DOC:
                continue
            same = [j for j, t in enumerate(tokens) if t == (doc, copy, position - 1)]
            clean = [j for j, t in enumerate(tokens) if t == (doc, 0, position - 1)]
            shared = [j for j, t in enumerate(tokens) if t == (prefix[i], 0, position - 1)]
            if same or clean or shared:
                out[row, i] = hidden[row, (same or clean or shared)[0]]
    return out


def random_row(rng: random.Random, length: int, b: int = 4) -> list[tuple[int, int, int, int]]:
    """Packed documents, each with clean blocks and noisy copies of some; padding at the end."""
    row, doc = [], 0
    while len(row) < length - 3 * b:
        blocks = rng.randint(1, 3)
        row += [(doc, p // b, 0, p) for p in range(blocks * b)]
        for copy in range(1, rng.randint(1, 3)):
            block = rng.randint(0, blocks)
            row += [(doc, block, copy, block * b + k) for k in range(b)]
        doc += 1
    return [*row[:length], *[(PAD_DOC, 0, 0, 0)] * (length - len(row))]


def as_layout(rows) -> TokenLayout:
    return TokenLayout(*(torch.tensor(rows)[..., i] for i in range(4)))


def real(layout: TokenLayout) -> torch.Tensor:
    return layout.doc_BL != PAD_DOC


def test_packed_rows_with_noisy_copies() -> None:
    rng = random.Random(0)
    for _ in range(30):
        layout = as_layout([random_row(rng, 40) for _ in range(3)])
        hidden = torch.randn(3, 40, 5)
        got, want = shift_hidden(hidden, layout), plain_shift(hidden, layout)
        assert torch.equal(got[real(layout)], want[real(layout)])


def test_one_plain_sequence_moves_by_one() -> None:
    hidden, layout = torch.randn(2, 9, 3), TokenLayout.sequences(9, 4, torch.tensor([9, 5]))
    got = shift_hidden(hidden, layout)
    assert torch.equal(got[0], torch.cat((hidden[0, :1], hidden[0, :-1])))
    assert torch.equal(got[1, :5], torch.cat((hidden[1, :1], hidden[1, :4])))


def test_the_token_before_may_be_the_shared_prompts() -> None:
    """Prompt of one block (positions 0, 1), shared by two responses that begin at position 2, one with a noisy copy."""
    doc, prefix = torch.tensor([[0, 0, 1, 1, 1, 1, 2, 2]]), torch.zeros(1, 8, dtype=torch.long)
    copy, position = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]]), torch.tensor([[0, 1, 2, 3, 2, 3, 2, 3]])
    layout = TokenLayout(doc, position // 2, copy, position, prefix)
    hidden = torch.arange(8.0)[None, :, None]
    assert shift_hidden(hidden, layout).flatten().tolist() == [0, 0, 1, 2, 1, 4, 1, 6]
    torch.testing.assert_close(shift_hidden(hidden, layout), plain_shift(hidden, layout))

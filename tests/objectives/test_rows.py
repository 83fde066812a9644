"""Rows and packs: what is split, shared and laid end to end, and that none of it changes a number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import random_prompts
from unmask.attention import BACKENDS, DenseAttention
from unmask.diffusion.generate import generate
from unmask.objectives.rows import collate, fit_rows, pack_rows, score_targets, split_row
from unmask.objectives.trace_views import trace_rows
from unmask.objectives.views import Grid, masked_rows
from unmask.types import SamplingParams


@pytest.fixture(scope="module")
def rows(model):
    """Of two prompts with whole blocks, three responses each, and of one that is too short to be shared."""
    prompts = random_prompts([9, 14, 3])
    traces = generate(model, [prompts[i] for i in (0, 1, 0, 2, 1, 0, 1)], SamplingParams(max_new_tokens=21))
    return [row for trace in traces for row in trace_rows(trace, Grid(4), model.spec.mask_token_id)]


def keyed_scores(model, packs, backend=DenseAttention) -> dict[tuple, float]:
    """(tokens of the target's view and clean context, position) -> log-probability: names a target in any pack."""
    scores = {}
    for pack in packs:
        batch = collate(pack)
        with torch.no_grad():
            logprobs = score_targets(model, batch, backend).logprobs_N.tolist()
        owners = [(row, column) for row in pack for column in row.target_column]
        for (row, column), logprob in zip(owners, logprobs, strict=True):
            is_seen = ((row.copy == 0) & (row.block < row.block[column])) | (row.copy == row.copy[column])
            scores[(tuple(row.input_ids[is_seen]), int(row.position[column]))] = logprob
    return scores


@pytest.mark.parametrize("backend", ["dense", "tiled"])
@pytest.mark.parametrize("max_tokens", [1, 30, 50, 200, 10**6])
def test_packing_changes_no_score(model, rows, max_tokens, backend) -> None:
    alone = keyed_scores(model, [[row] for row in rows])
    packed = keyed_scores(model, pack_rows(rows, max_tokens), BACKENDS[backend])
    assert packed.keys() == alone.keys()
    assert max(abs(packed[k] - alone[k]) for k in alone) < 1e-5


@pytest.mark.parametrize("max_tokens", [1, 30, 41, 64, 100])
def test_split_rows_have_all_that_they_need(rows, max_tokens) -> None:
    for row in rows:
        pieces = list(split_row(row, max_tokens))
        assert sum(len(piece.target_ids) for piece in pieces) == len(row.target_ids)
        for key, values in row.values.items():
            assert np.concatenate([piece.values[key] for piece in pieces]).tolist() == values.tolist()
        for piece in pieces:
            num_copies = len(set(piece.copy.tolist()) - {0})
            assert piece.num_shared == row.num_shared
            num_clean = int((piece.copy == 0).sum())
            assert len(piece.input_ids) <= max(max_tokens, 2 * num_clean) or num_copies == 1
            assert num_clean == 4 * piece.block.max()  # whole blocks before the last noisy one, nothing more
    fitted = fit_rows(rows, max_tokens)
    assert [id(row) for row in fit_rows(fitted, max_tokens)] == [id(row) for row in fitted]  # once is enough


def test_long_rows_are_not_cut_into_single_copies() -> None:
    """However small the budget: clean tokens are at most as many as all copies' tokens, but for the last block or two."""
    num_blocks = 64
    ids = np.arange(4 * num_blocks)
    is_masked = np.ones((1, len(ids)), dtype=bool)
    [row] = masked_rows([], ids.tolist(), Grid(4), 2, is_masked, is_masked)
    for max_tokens in (8, 64, 256):
        pieces = list(split_row(row, max_tokens))
        assert sum(len(piece.target_ids) for piece in pieces) == len(ids)
        assert sum(len(piece.input_ids) for piece in pieces) <= 2 * len(row.input_ids)
        assert len(pieces) <= 2 + np.log2(num_blocks)


def test_packs_keep_to_the_budget_and_to_the_prompts(rows) -> None:
    """Rows with one prompt follow each other, and pay for it once."""
    for max_tokens in (100, 110, 121, 134, 150, 200, 277):
        packs = list(pack_rows(rows, max_tokens))
        sizes = [collate(pack).input_ids_BL.shape[1] for pack in packs]
        assert max(sizes) <= max_tokens
        assert len(packs) > 1
        for size, following in zip(sizes, packs[1:], strict=False):  # what comes next would have been too much
            assert size + len(following[0].input_ids) > max_tokens
    [pack] = pack_rows(rows, 10**6)
    assert [row.num_shared for row in pack] == [8, 8, 8, 12, 12, 12, 0]
    assert collate(pack).input_ids_BL.shape == (1, sum(len(row.input_ids) for row in rows) - 2 * 8 - 2 * 12)
    assert not (collate(pack).layout.doc_BL < 0).any()  # no padding


def test_a_shared_prompt_is_seen_by_its_responses_alone(rows) -> None:
    [pack] = pack_rows(rows, 10**6)
    layout = collate(pack).layout
    prefix_of = dict(zip(layout.doc_BL[0].tolist(), layout.prefix_doc_BL[0].tolist(), strict=True))
    shared = [doc for doc, prefix in prefix_of.items() if list(prefix_of.values()).count(prefix) > 1 and doc == prefix]
    assert len(shared) == 2
    assert sum(prefix in shared for doc, prefix in prefix_of.items() if doc != prefix) == 6


def test_equal_tokens_on_another_grid_are_not_shared(model) -> None:
    ids, canvas = list(range(3, 12)), list(range(20, 31))
    is_masked = np.arange(20)[None] >= 12
    rows = [masked_rows(ids, canvas, Grid(b), 2, is_masked, is_masked)[0] for b in (2, 4)]
    assert rows[0].num_shared == rows[1].num_shared == 8
    assert collate(rows).input_ids_BL.shape[1] == sum(len(row.input_ids) for row in rows)
    assert collate([rows[0], rows[0]]).input_ids_BL.shape[1] == 2 * len(rows[0].input_ids) - 8


def test_masked_rows_worked_example() -> None:
    """Two masks over a prompt of 3 and a canvas of 6 in blocks of 4; the last block is filled up to its end."""
    is_masked = np.array([[0, 0, 0, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0, 1]], dtype=bool)
    is_target = is_masked.copy()
    is_target[0, 4] = False
    [row] = masked_rows([5, 6, 7], [10, 11, 12, 13, 14, 15], Grid(4), 2, is_masked, is_target)
    assert row.input_ids[:8].tolist() == [5, 6, 7, 10, 11, 12, 13, 14]
    assert row.input_ids[8:].reshape(-1, 4).tolist() == [[5, 6, 7, 2], [11, 12, 2, 14], [2, 2, 2, 2]]
    assert row.target_ids.tolist() == [10, 13, 15]
    assert row.values["canvas_index"].tolist() == [0, 3, 5]
    full = masked_rows([5, 6, 7], [10, 11, 12, 13, 14, 15], Grid(None), 2, is_masked, is_target)
    assert [r.input_ids.tolist() for r in full] == [[5, 6, 7, 2, 2, 12, 13, 14, 15], [5, 6, 7, 10, 11, 12, 2, 14, 2]]
    assert [r.target_ids.tolist() for r in full] == [[10], [13, 15]]

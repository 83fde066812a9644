"""The published losses of every SFT method and family, on packed rows."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch

from tests.objectives.published import PublishedCase, cases_of, load_published, published_cases
from tests.objectives.published_losses import LOSS, MAX_TOKENS, ROW_LOSS, assert_gradients, run_packs
from unmask.attention import TiledAttention
from unmask.objectives.ar import Autoregressive
from unmask.objectives.cross_entropy import cross_entropy
from unmask.objectives.rows import TrainRow, score_targets, set_weights
from unmask.types import Demonstration


def rows_of(published: PublishedCase) -> list[TrainRow]:
    """With the published averages: block models divide every row by the padded length of the responses, full attention by its
    number of trained tokens; then rows are averaged."""
    num_rows = published.num_rows
    if published.training["method"] == "ar":
        return ar_rows(published)
    rows = [published.views(i) for i in range(len(published.sequences))]
    set_weights(rows, "constant" if published.is_block else "trace_step", published.num_canvas, num_rows)
    return [row for of in rows for row in of]


def ar_rows(published: PublishedCase) -> list[TrainRow]:
    """By the objective itself. Pads that are trained are part of the response; behind it they are seen by nothing that is."""
    items = []
    for i, item in enumerate(published.params["data"]):
        is_trained_L = published.p_mask_NL[published.sequences[i].rows[0], published.start :]
        length = int(is_trained_L.nonzero()[0].max()) + 1
        items.append(Demonstration(i, 0, item["prompt_ids"], published.sequences[i].trace.canvas_ids[:length]))
    options = Autoregressive.Options(loss_normalization="sequence")
    rows = Autoregressive(options, published.spec, 0).rows(items)
    for i, row in enumerate(rows):
        row.values["row"] = np.full(len(row.target_ids), published.sequences[i].rows[0])
    return rows


@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
@pytest.mark.parametrize(("folder", "name"), published_cases("train_sft"))
def test_sft_losses(folder, name, max_tokens) -> None:
    model = load_published(folder)
    published = PublishedCase(cases_of(folder, "train_sft")[name], model)
    score = functools.partial(score_targets, model, backend=TiledAttention, excludes_mask=False)
    total, stats, batch = run_packs(rows_of(published), max_tokens, score, lambda stats, batch: cross_entropy(stats, batch)[0])

    published.assert_trains_the_same(batch.values)
    assert total == pytest.approx(published.expected["loss"], abs=LOSS)
    assert_gradients(model, published, "")
    row, loss_N = batch.values["row"].long(), -batch.values["weight"] * stats.logprobs_N
    each = torch.zeros(published.num_rows).index_add(0, row, loss_N) * published.num_rows
    torch.testing.assert_close(each, published.outputs["loss_row_as_batch_of_one"], atol=ROW_LOSS, rtol=0)

"""The published losses of TraceRL, random masking and coupled masks, through our objectives on packed rows."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.objectives.published import PublishedCase, cases_of, load_published, published_cases
from tests.objectives.published_losses import (
    LOGPROBS,
    LOSS,
    MAX_TOKENS,
    ROW_LOSS,
    PublishedLoss,
    assert_gradients,
    row_losses,
    run_packs,
)  # fmt: skip
from unmask.attention import TiledAttention
from unmask.objectives.rows import fit_rows, pack_rows, score_targets
from unmask.types import Rollout


def rollouts_of(published: PublishedCase) -> list[Rollout]:
    """The reward is the advantage. (A response whose advantage is 0 has no rows, except with zeros given token by token.)"""
    rollouts = [Rollout(s.trace, "", advantage=s.reward) for s in published.sequences]
    return [r if r.advantage else replace(r, token_advantages=np.zeros(published.num_canvas)) for r in rollouts]


@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
@pytest.mark.parametrize(("folder", "name"), published_cases("train_rl"))
def test_policy_losses(folder, name, max_tokens) -> None:
    model = load_published(folder)
    published = PublishedCase(cases_of(folder, "train_rl")[name], model)
    loss = PublishedLoss(published)
    rows = loss.rows(rollouts_of(published))
    # The published distributions have the mask token in them.
    score = functools.partial(score_targets, model, backend=TiledAttention, excludes_mask=False)
    total, stats, batch = run_packs(rows, max_tokens, score, loss)

    published.assert_trains_the_same(batch.values)
    want = published.at_targets(published.outputs["logp_new"], batch.values)
    torch.testing.assert_close(stats.logprobs_N, want, **LOGPROBS)
    assert total == pytest.approx(published.expected["loss"], abs=LOSS)
    assert_gradients(model, published, "")
    each = row_losses(loss, published.num_rows, stats, batch)
    torch.testing.assert_close(each, published.outputs["loss_row_as_batch_of_one"], atol=ROW_LOSS, rtol=0)


def test_rows_are_really_packed_and_split() -> None:
    """What the limits above do to the published rows."""
    packs, pieces, rows = {}, 0, 0
    for parameter in published_cases("train_rl"):
        folder, name = parameter.values
        published = PublishedCase(cases_of(folder, "train_rl")[name], load_published(folder))
        ours = PublishedLoss(published).rows(rollouts_of(published))
        rows, pieces = rows + len(ours), pieces + len(fit_rows(ours, MAX_TOKENS[0]))
        for limit in MAX_TOKENS:
            packs[limit] = packs.get(limit, 0) + len(list(pack_rows(ours, limit)))
    if not rows:
        pytest.skip("golden fixtures are not here")
    assert pieces > rows > packs[MAX_TOKENS[1]]

"""Autoregressive SFT: each response token given those before it, and nothing of what follows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import SPECIAL
from unmask.attention import DenseAttention, TiledAttention, TokenLayout
from unmask.models.checkpoint import new_model
from unmask.objectives.ar import Autoregressive
from unmask.objectives.rows import collate, score_targets
from unmask.types import Demonstration


def demonstrations() -> list[Demonstration]:
    rng = np.random.default_rng(0)
    items = [Demonstration(i, 0, rng.integers(3, 40, 4 * i).tolist(), rng.integers(3, 40, 5 + i).tolist()) for i in range(4)]
    twin = Demonstration(4, 0, items[3].prompt_ids, items[2].response_ids)  # shares its prompt with the one before
    return [*items, twin, Demonstration(5, 0, [], [7])]  # a single token follows nothing


@pytest.mark.parametrize("family", ["sdar", "dream", "llada"])
@torch.no_grad()
def test_every_token_is_predicted_from_those_before_it(family) -> None:
    model, items = new_model(f"{family}/tiny", 3, **SPECIAL), demonstrations()
    rows = Autoregressive(Autoregressive.Options(), model.spec, 0).rows(items)
    assert len(rows) == 5
    batch = collate(rows)
    found = score_targets(model, batch, TiledAttention, excludes_mask=False).logprobs_N
    wanted = []
    for item in items[:-1]:
        ids = [*item.prompt_ids, *item.response_ids]
        for i in range(max(1, len(item.prompt_ids)), len(ids)):
            layout = TokenLayout.sequences(i + 1, 1, torch.tensor([i + 1]))
            seen = torch.tensor([[*ids[:i], 5]])  # whatever stands at the token's own place
            hidden_BLD = model(seen, layout, backend=DenseAttention)
            place = i if model.spec.shift_logits else i - 1
            wanted.append(model.head(hidden_BLD)[0, place].log_softmax(-1)[ids[i]])
    torch.testing.assert_close(found, torch.stack(wanted), atol=2e-5, rtol=0)  # float32


@pytest.mark.parametrize(
    ("kind", "expected"), [("token", lambda n, all_n: 1 / all_n), ("sequence", lambda n, all_n: 1 / n / 6)]
)
def test_averages(kind, expected) -> None:
    model = new_model("dream/tiny", 3, **SPECIAL)
    rows = Autoregressive(Autoregressive.Options(loss_normalization=kind), model.spec, 0).rows(demonstrations())
    num = sum(len(row.target_ids) for row in rows)
    for row in rows:
        np.testing.assert_allclose(row.values["weight"], expected(len(row.target_ids), num))

"""The published value model's side of TraceRL: values, returns, advantages, value loss, and the policy loss under them."""

from __future__ import annotations

import functools

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
from unmask.models import ValueModel
from unmask.objectives.rows import RowBatch, TrainRow, collate, pack_rows, score_targets, set_weights, target_hidden
from unmask.objectives.value import outcome_rewards, trace_advantages, value_loss
from unmask.types import Rollout

VALUES = {"atol": 1e-4, "rtol": 0}
CASES = pytest.mark.parametrize(("folder", "name"), published_cases("train_value"))


@functools.cache
def value_case(folder, name: str) -> tuple[PublishedCase, ValueModel]:
    model = load_published(folder, head="value")
    return PublishedCase(cases_of(folder, "train_value")[name], model), model


def set_head(model: ValueModel, weight: torch.Tensor) -> ValueModel:
    with torch.no_grad():
        model.value_head.weight.copy_(weight)
    model.zero_grad()
    return model


def values_of(model: ValueModel, batch: RowBatch) -> torch.Tensor:
    return model.head(target_hidden(model, batch, TiledAttention))


@torch.no_grad()
def on_canvas(published: PublishedCase, model: ValueModel, i: int, max_tokens: int) -> np.ndarray:
    """Values [J] of the i-th response's trained tokens; 0 elsewhere."""
    values = np.zeros(published.num_canvas)
    for pack in pack_rows(published.views(i), max_tokens):
        batch = collate(pack)
        values[batch.values["canvas_index"].long().numpy()] = values_of(model, batch).numpy()
    return values


def returns_and_advantages(published: PublishedCase, i: int, value_J: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """Both [J]. Steps have the number of the last one merged into them, over the whole response.

    Of the pads, the first `post_num` of the sequence take part. The rows may have further ones (golden/README.md, 8.4): their
    published returns and advantages are 0. A vector of rewards is published as continued over the padding with its
    maximum plus 1 (8.5): given to our code like that.
    """
    sequence = published.sequences[i]
    is_pad_J = np.array(sequence.trace.canvas_ids) == published.params["pad_id"]
    post_num = published.training["post_num"]
    (takes_part,) = (~is_pad_J | (np.cumsum(is_pad_J) <= (len(is_pad_J) if post_num is None else post_num))).nonzero()
    step_N = sequence.shrunk_step[takes_part]
    if isinstance(sequence.reward, list):
        made_up = [max(sequence.reward) + 1] * (published.num_canvas - len(sequence.reward))
        reward_N = np.array((sequence.reward + made_up)[: published.num_canvas])[takes_part]
    else:
        reward_N = outcome_rewards(step_N, sequence.reward)
    result = np.zeros((2, published.num_canvas))
    result[:, takes_part] = trace_advantages(step_N, reward_N, value_J[takes_part], gamma, lam)
    return result


def pairs_of(published: PublishedCase) -> list[tuple[int, float, float]]:
    """(index, gamma, lambda), without those for which the published code refused its own numbers ("error_i")."""
    pairs = enumerate(published.params["gamma_lambda"])
    return [(k, gamma, lam) for k, (gamma, lam) in pairs if f"return_{k}" in published.outputs]


def all_old_values(published: PublishedCase, model: ValueModel, max_tokens: int) -> list[np.ndarray]:
    set_head(model, published.inputs["value_head.weight"])
    return [on_canvas(published, model, i, max_tokens) for i in range(len(published.sequences))]


def published_targets(published: PublishedCase, key: str, i: int) -> tuple[np.ndarray, np.ndarray]:
    """A published table's entries for the i-th response's trained tokens, and where they are on the canvas."""
    rows = published.sequences[i].rows
    n, index = published.p_mask_NL[rows, published.start :].nonzero()
    return published.outputs[key].numpy()[rows[n], published.start + index], index


@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
@CASES
def test_old_values_returns_and_advantages(folder, name, max_tokens) -> None:
    published, model = value_case(folder, name)
    old_values = all_old_values(published, model, max_tokens)
    for i, (sequence, value_J) in enumerate(zip(published.sequences, old_values, strict=True)):
        assert (sequence.shrunk_step == published.outputs["step_map_shrunk"][i].numpy()).all()
        want, index = published_targets(published, "old_values", i)
        np.testing.assert_allclose(value_J[index], want, **VALUES)
        for k, gamma, lam in pairs_of(published):
            return_J, advantage_J = returns_and_advantages(published, i, value_J, gamma, lam)
            for got_J, key in ((return_J, f"return_{k}"), (advantage_J, f"adv_{k}")):
                want, index = published_targets(published, key, i)
                np.testing.assert_allclose(got_J[index], want, **VALUES, err_msg=key)


@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
@CASES
def test_value_losses(folder, name, max_tokens) -> None:
    """With the returns of the last (gamma, lambda); every row is divided by the padded length, and rows are averaged."""
    published, model = value_case(folder, name)
    old_values = all_old_values(published, model, max_tokens)
    gamma, lam = published.params["gamma_lambda"][-1]
    rows_of: list[list[TrainRow]] = []
    for i, value_J in enumerate(old_values):
        return_J, _ = returns_and_advantages(published, i, value_J, gamma, lam)
        rows_of.append(published.views(i))
        for row in rows_of[-1]:
            index = row.values["canvas_index"]
            row.values.update({"return": return_J[index], "old_value": value_J[index]})
    set_weights(rows_of, "constant", published.num_canvas, published.num_rows)

    def loss(value_N: torch.Tensor, batch: RowBatch) -> torch.Tensor:
        return value_loss(value_N, batch, published.training["eps"])[0]

    set_head(model, published.inputs["value_head_now.weight"])
    rows = [row for rows in rows_of for row in rows]
    total, value_N, batch = run_packs(rows, max_tokens, functools.partial(values_of, model), loss)
    published.assert_trains_the_same(batch.values)
    torch.testing.assert_close(value_N, published.at_targets(published.outputs["values_now"], batch.values), **VALUES)
    assert total == pytest.approx(published.expected["value_loss"], abs=LOSS)
    assert_gradients(model, published, "value_")
    each = row_losses(loss, published.num_rows, value_N, batch)
    torch.testing.assert_close(each, published.outputs["value_loss_row_as_batch_of_one"], atol=ROW_LOSS, rtol=0)


@pytest.mark.parametrize("max_tokens", MAX_TOKENS)
@CASES
def test_policy_losses_under_advantages(folder, name, max_tokens) -> None:
    published, model = value_case(folder, name)
    old_values = all_old_values(published, model, max_tokens)
    policy = load_published(folder)
    score = functools.partial(score_targets, policy, backend=TiledAttention, excludes_mask=False)
    loss = PublishedLoss(published)
    assert pairs_of(published)
    for k, gamma, lam in pairs_of(published):
        rollouts = [
            Rollout(sequence.trace, "", token_advantages=returns_and_advantages(published, i, value_J, gamma, lam)[1])
            for i, (sequence, value_J) in enumerate(zip(published.sequences, old_values, strict=True))
        ]
        policy.zero_grad()
        total, stats, batch = run_packs(loss.rows(rollouts), max_tokens, score, loss)
        published.assert_trains_the_same(batch.values)
        want = published.at_targets(published.outputs["logp_new"], batch.values)
        torch.testing.assert_close(stats.logprobs_N, want, **LOGPROBS)
        assert total == pytest.approx(published.expected[f"policy_{k}_loss"], abs=LOSS)
        if f"policy_{k}_grad_norms" in published.expected:
            assert_gradients(policy, published, f"policy_{k}_")
        each = row_losses(loss, published.num_rows, stats, batch)
        torch.testing.assert_close(each, published.outputs[f"policy_{k}_loss_row_as_batch_of_one"], atol=ROW_LOSS, rtol=0)

"""The policy loss term by term, and the masks of the baselines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.conftest import random_prompts
from tests.models.rows import opinionated
from unmask.diffusion.generate import generate
from unmask.objectives.coupled import Coupled
from unmask.objectives.fused_head import TargetStats
from unmask.objectives.random_masking import RandomMasking
from unmask.objectives.rows import RowBatch, TrainRow, set_weights
from unmask.objectives.trace_rl import TraceRL
from unmask.types import Rollout, SamplingParams, Trace

MASK = 2


def loss_of(model, new: torch.Tensor, values: dict[str, list[float]], **options) -> tuple[torch.Tensor, dict]:
    ids = torch.zeros(len(new), dtype=torch.long)
    batch = RowBatch(ids, None, ids, ids, {key: torch.tensor(value) for key, value in values.items()})  # type: ignore[arg-type]
    return TraceRL(TraceRL.Options(**options), model.spec).loss(TargetStats(new, new * 0, new * 0), batch)


VALUES = {
    "old_logprobs": [-1.0, -2.0, -0.5], "rollout_logprobs": [-1.0, -3.5, -0.2], "ref_logprobs": [-1.4, -1.7, -0.9],
    "advantage": [1.0, -2.0, 0.5], "weight": [0.2, 0.3, 0.5],
}  # fmt: skip
KEYS = ("old_logprobs", "rollout_logprobs")
NEW = [-1.1, -1.8, -0.5]


@pytest.mark.parametrize("kl_to", ["old", "reference"])
@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_penalty_is_to_whom_it_says(model, kl_to, kind) -> None:
    new = torch.tensor(NEW, requires_grad=True)
    options = {"kl_to": kl_to, "kl_estimator": kind, "importance_cap": 0.0}
    with_penalty, sums = loss_of(model, new, VALUES, kl_beta=0.5, **options)
    penalty = with_penalty - loss_of(model, new, VALUES, kl_beta=0.0, **options)[0]
    d = new - torch.tensor(VALUES["old_logprobs" if kl_to == "old" else "ref_logprobs"])
    each = {"k1": d, "k2": d**2 / 2, "k3": (-d).exp() - 1 + d}[kind]
    wanted = 0.5 * (torch.tensor(VALUES["weight"]) * each).sum()
    assert penalty.item() == pytest.approx(wanted.item(), abs=1e-6)
    gradients = [torch.autograd.grad(value, new, retain_graph=True)[0] for value in (penalty, wanted)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=0)
    assert ("ref_kl_sum" in sums) == (kl_to == "reference")
    if kl_to == "reference":
        assert sums["ref_kl_sum"].item() == pytest.approx(((-d).exp() - 1 + d).sum().item(), abs=1e-6)


@pytest.mark.parametrize("d", [-30.0, -10.1, -9.9, -1e-6, 9.9, 10.1, 30.0])
def test_gradients_keep_their_sign_far_away(model, d) -> None:
    """The penalty pulls back, and an unlikely token that has become likely is pushed down, however far they are."""
    far = {key: value[:1] for key, value in VALUES.items()} | {"old_logprobs": [-40.0], "weight": [1.0]}
    far["rollout_logprobs"] = far["old_logprobs"]
    new = torch.tensor([d - 40.0], requires_grad=True)
    loss, _ = loss_of(model, new, {**far, "advantage": [0.0]}, kl_beta=1.0)
    [pull] = torch.autograd.grad(loss, new)
    assert torch.isfinite(loss)
    assert pull.item() == 0 if abs(d) < 1e-5 else pull.item() * d > 0
    if d > 0:
        [push] = torch.autograd.grad(loss_of(model, new, {**far, "advantage": [-1.0]}, kl_beta=0.0)[0], new)
        assert push.item() == pytest.approx(np.exp(min(d, 10.0)), rel=1e-4)


@pytest.mark.parametrize("cap", [0.0, 1.1, 2.0, 100.0])
def test_importance_weights_are_truncated(model, cap) -> None:
    """min(pi_old / pi_sampler, cap) on the surrogate, not on the KL; without gradient; 0 = none."""
    new = torch.tensor(NEW, requires_grad=True)
    loss, sums = loss_of(model, new, VALUES, kl_beta=0.3, importance_cap=cap)
    old, sampler, a, w = (torch.tensor(VALUES[k]) for k in ("old_logprobs", "rollout_logprobs", "advantage", "weight"))
    importance = (old - sampler).exp().clamp(max=cap) if cap else torch.ones(3)
    assert len({round(x, 3) for x in importance.tolist()}) == (3 if cap else 1)
    ratio, d = (new - old).exp(), new - old
    surrogate = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) * importance
    wanted = -(w * (surrogate - 0.3 * ((-d).exp() - 1 + d))).sum()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-6)
    torch.testing.assert_close(*(torch.autograd.grad(x, new)[0] for x in (loss, wanted)), atol=1e-6, rtol=0)
    if cap:
        assert sums["truncated_sum"].item() == sum(math.exp(o - s) > cap for o, s in zip(*map(VALUES.get, KEYS), strict=True))
    else:
        assert "truncated_sum" not in sums
    e = new - sampler
    assert sums["mismatch_sum"].item() == pytest.approx(((-e).exp() - 1 + e).sum().item(), abs=1e-5)


def test_weights_of_every_normalization() -> None:
    """Two responses, one of them in two rows: 3 + 2 tokens in steps of 1 and 2, and 1 token."""

    def row(view: list[int]) -> TrainRow:
        zeros = np.zeros(len(view), dtype=np.int64)
        return TrainRow(zeros, zeros, zeros, zeros, zeros, zeros, {"view": np.array(view)})

    def weights(kind: str) -> list[float]:
        rows_of = [[row([0, 1, 1]), row([2, 2])], [row([0])]]
        set_weights(rows_of, kind, constant_length=10, num_sequences=4)
        return np.concatenate([r.values["weight"] for rows in rows_of for r in rows]).tolist()

    assert weights("trace_step") == pytest.approx([1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8, 1 / 4])
    assert weights("token") == pytest.approx([1 / 6] * 6)
    assert weights("sequence") == pytest.approx([1 / 20] * 5 + [1 / 4])
    assert weights("constant") == pytest.approx([1 / 40] * 6)


@pytest.fixture(scope="module", params=["sdar", "llada"])
def decoded(request):
    """A model, and responses of which some end inside a block."""
    model = opinionated(request.param)
    params = SamplingParams(max_new_tokens=22, block_size=4, confidence_threshold=0.3, stop_token_ids=(1, 11, 12, 13))
    seeded = [params.model_copy(update={"seed": i}) for i in range(6)]
    traces = [generate(model, [prompt], p)[0] for prompt, p in zip(random_prompts([0, 3, 5, 9, 6, 2]), seeded, strict=True)]
    assert any(t.num_response_tokens < len(t.canvas_ids) for t in traces)
    return model, traces


def views_of(model, objective, trace: Trace, draw: int = 0) -> list[tuple[np.ndarray, set[int], set[int]]]:
    """(visible positions' tokens, positions that are masked, targets) of each view, from the rows."""
    views = []
    for row in objective.views(Rollout(trace, "", advantage=1.0), draw):
        copies = [0] if model.spec.attention == "bidirectional" else range(1, row.copy.max() + 1)
        for copy in copies:
            mine = np.flatnonzero(row.copy == copy)
            targets = {int(row.position[c]) for c in row.target_column if c in mine}
            views.append((mine, {int(row.position[c]) for c in mine if row.input_ids[c] == MASK}, targets))
            ids = [*trace.prompt_ids, *trace.canvas_ids]
            assert all(row.input_ids[c] == ids[row.position[c]] for c in mine if row.input_ids[c] != MASK)
    return views


@pytest.mark.parametrize("kind", [RandomMasking, Coupled])
def test_what_lies_behind_the_response_is_hidden_and_not_trained(decoded, kind) -> None:
    model, traces = decoded
    objective = kind(kind.Options(num_masks=3), model.spec)
    for trace in traces:
        end = len(trace.prompt_ids) + trace.num_response_tokens
        for mine, masked, targets in views_of(model, objective, trace):
            assert len(mine)
            assert targets
            assert all(len(trace.prompt_ids) <= position < end for position in targets)
            inside = {p for p in masked if p < end}
            assert inside == targets
            reach = max(masked | {end - 1})
            assert set(range(end, reach + 1)) <= masked  # all of it, and none of it a target


def test_tokens_that_were_never_unmasked_are_never_trained(decoded) -> None:
    model, traces = decoded
    trace = max(traces, key=lambda t: t.num_response_tokens)
    gap = trace.num_response_tokens // 2
    steps = [-1 if i == gap else step for i, step in enumerate(trace.step_map)]
    ids = [MASK if i == gap else token for i, token in enumerate(trace.canvas_ids)]
    broken = Trace(**{**trace.to_dict(), "step_map": steps, "canvas_ids": ids})
    objective = Coupled(Coupled.Options(num_masks=4), model.spec)
    trained = set()
    for _, masked, targets in views_of(model, objective, broken):
        position = len(trace.prompt_ids) + gap
        assert position not in targets
        trained |= targets
        if position // 4 in {p // 4 for p in targets} or model.spec.attention == "bidirectional":
            assert position in masked
    assert len(trained) == trace.num_response_tokens - 1


def test_coupled_masks_are_complements(decoded) -> None:
    """Each drawn pair trains every response token exactly once."""
    model, traces = decoded
    for num in (1, 3):
        objective = Coupled(Coupled.Options(num_masks=num), model.spec)
        for trace in traces:
            start = len(trace.prompt_ids)
            count = np.zeros(trace.num_response_tokens, dtype=int)
            for _, _, targets in views_of(model, objective, trace):
                count[[p - start for p in targets]] += 1
            assert (count == num).all()


def test_masks_are_drawn_anew_in_every_pass_and_for_every_response(decoded) -> None:
    model, traces = decoded
    objective = RandomMasking(RandomMasking.Options(), model.spec)
    trace = max(traces, key=lambda t: t.num_response_tokens)

    def targets(draw: int = 0, trace: Trace = trace) -> list[set[int]]:
        return [t for _, _, t in views_of(model, objective, trace, draw)]

    assert targets() == targets()
    assert targets(0) != targets(1)
    assert targets() != targets(trace=Trace(**{**trace.to_dict(), "seed": trace.seed + 1}))


def test_every_block_has_a_rate_of_its_own() -> None:
    """Block models: 4,000 blocks of one response, then as many responses of full attention; binomial and the rates' spread."""
    num = 1000
    trace = Trace([], [5] * 4 * num, [0] * 4 * num, [0.0] * 4 * num, [1.0] * 4 * num, 4 * num, 4, 1, "stop")
    block_S = np.arange(4 * num) // 4
    options = RandomMasking.Options(num_masks=4, min_rate=0.2, max_rate=0.8)
    model = opinionated("sdar")
    masks = RandomMasking(options, model.spec).masks(Rollout(trace, ""), 0, block_S)
    assert masks.shape == (4, 4 * num)
    per_block = masks.reshape(-1, 4).sum(1)
    assert masks.mean() == pytest.approx(0.5, abs=0.02)
    assert per_block.var() == pytest.approx(4 * 0.25 + 12 * 0.6**2 / 12, rel=0.08)
    assert len({tuple(mask) for mask in masks}) == 4
    whole = RandomMasking(options, model.spec).masks(Rollout(trace, ""), 0, 0 * block_S)  # one block: one rate for each mask
    assert np.abs(whole.mean(1) - 0.5).max() > 0.02
    assert whole.reshape(4, -1, 4).sum(2).var(1) == pytest.approx(4 * whole.mean(1) * (1 - whole.mean(1)), rel=0.15)

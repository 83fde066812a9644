"""Rows of traces: the worked example, and the ragged row against one row per step written plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import random_prompts
from tests.grid import grid
from tests.models.rows import opinionated
from unmask.attention import BACKENDS
from unmask.diffusion.drawing import draw_logprobs
from unmask.diffusion.generate import generate
from unmask.errors import UnmaskError
from unmask.objectives.policy import kl_estimate
from unmask.objectives.rows import TrainRow, collate, pack_rows, score_targets
from unmask.objectives.trace_rl import TraceRL
from unmask.objectives.trace_views import shrink_steps, trace_rows
from unmask.objectives.views import Grid
from unmask.types import Rollout, SamplingParams, Trace

MASK = 2


def hand_trace(prompt: list[int], canvas: list[int], step_map: list[int], counted: int, b: int = 4) -> Trace:
    zeros = [0.0] * len(canvas)
    return Trace(prompt, canvas, step_map, zeros, zeros, counted, b, max(step_map) + 1, "length")


def trace_row(trace: Trace, *, counts_all: bool = False) -> TrainRow:
    every = np.ones(len(trace.canvas_ids), dtype=bool) if counts_all else None
    [row] = trace_rows(trace, Grid(trace.block_size), MASK, is_trained=every)
    return row


def test_shrink_worked_example() -> None:
    block, step = np.zeros(5, dtype=np.int64), np.array([5, 2, 2, 9, 7])
    assert shrink_steps(block, step, 2).tolist() == [0, 0, 0, 1, 1]  # {2, 5}, {7, 9}
    assert shrink_steps(block, step, 1).tolist() == [1, 0, 0, 3, 2]
    assert shrink_steps(block, step, 100).tolist() == [0] * 5
    # neighbours merge within a block only
    assert shrink_steps(np.array([0, 0, 1, 1]), np.array([0, 1, 2, 3]), 3).tolist() == [0, 0, 1, 1]


def test_row_worked_example() -> None:
    # prompt 5 6 | response 10 .. 15; blocks [5 6 10 11] [12 13 14 15]; the last two tokens do not count
    trace = hand_trace([5, 6], [10, 11, 12, 13, 14, 15], [1, 0, 3, 2, 2, 4], counted=4)
    row = trace_row(trace)
    clean, copies = row.input_ids[:4].tolist(), row.input_ids[4:].reshape(-1, 4).tolist()
    assert clean == [5, 6, 10, 11]  # the last block is never seen clean by anyone
    assert copies == [[5, 6, MASK, MASK], [5, 6, MASK, 11], [MASK, MASK, MASK, MASK], [MASK, 13, 14, MASK]]
    assert row.position[4:].reshape(-1, 4).tolist() == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2
    assert row.copy.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    targets = list(zip((row.target_column - 4).tolist(), row.target_ids.tolist(), strict=True))
    assert targets == [(3, 11), (6, 10), (9, 13), (12, 12)]  # step 4 unmasks only a token that does not count
    assert row.values["canvas_index"].tolist() == [1, 0, 3, 2]
    assert row.num_shared == 0  # the prompt has no whole block
    everything = trace_row(trace, counts_all=True)
    assert sorted(everything.values["canvas_index"].tolist()) == list(range(6))


def test_nothing_to_train_gives_no_row() -> None:
    assert trace_rows(hand_trace([5], [1, 1, 1], [0, 1, 2], counted=0), Grid(4), MASK) == []


def test_a_canvas_of_broken_blocks_is_refused() -> None:
    with pytest.raises(UnmaskError, match="prompt and canvas have 4 tokens, not whole blocks of 3"):
        trace_row(hand_trace([5], [1, 1, 1], [0, 1, 2], counted=3, b=3))


def test_rows_with_full_attention() -> None:
    """A row for each step that unmasked something that counts: the whole canvas, what was never unmasked included."""
    trace = hand_trace([5, 6], [10, 11, MASK, 12, MASK], [1, 0, -1, 2, -1], counted=2)
    rows = trace_rows(trace, Grid(None), MASK)
    assert [row.input_ids.tolist() for row in rows] == [
        [5, 6, MASK, MASK, MASK, MASK, MASK],
        [5, 6, MASK, 11, MASK, MASK, MASK],
    ]
    assert [(row.target_column.tolist(), row.target_ids.tolist()) for row in rows] == [([3], [11]), ([2], [10])]
    assert [row.values["canvas_index"].tolist() for row in rows] == [[1], [0]]
    for row in rows:
        assert not row.block.any()
        assert not row.copy.any()
        assert row.num_shared == 0
        assert row.position.tolist() == list(range(7))
    assert len(trace_rows(trace, Grid(None), MASK, trace_shrink=2)) == 1


def test_another_grid_than_the_samplers() -> None:
    """Rolled out with blocks of 2, trained with blocks of 4: later steps of a block see more, its end is filled up."""
    trace = hand_trace([5], [10, 11, 12, 13, 14], [0, 1, 2, 3, 3], counted=5, b=2)
    [row] = trace_rows(trace, Grid(4), MASK)
    assert row.input_ids[:4].tolist() == [5, 10, 11, 12]
    copies = row.input_ids[4:].reshape(-1, 4).tolist()
    assert copies == [[5, MASK, MASK, MASK], [5, 10, MASK, MASK], [5, 10, 11, MASK], [MASK] * 4]
    assert row.target_ids.tolist() == [10, 11, 12, 13, 14]
    [row] = trace_rows(trace, Grid(4, start=1, is_filled=False), MASK)  # counted from the response, as published
    assert row.block[:5].tolist() == [0, 1, 1, 1, 1]
    assert row.input_ids[5:].tolist() == [MASK] * 4 + [10] + [MASK] * 3 + [10, 11] + [MASK] * 2 + [10, 11, 12] + [MASK] * 2


def plain_logprobs(model, trace: Trace, shrink: int) -> torch.Tensor:
    """One row per (block, merged step), each a plain forward of the sequence up to and including the block."""
    ids, num_prompt = trace.prompt_ids + trace.canvas_ids, len(trace.prompt_ids)
    is_full = model.spec.attention == "bidirectional"
    b = len(ids) if is_full else trace.block_size
    out: dict[int, torch.Tensor] = {}
    for start in range(num_prompt // b * b, len(ids), b):
        positions = [i for i in range(start, start + b) if i >= num_prompt]
        steps = sorted({trace.step_map[i - num_prompt] for i in positions} - {-1})
        for group in (steps[i : i + shrink] for i in range(0, len(steps), shrink)):
            seen = [i < num_prompt or 0 <= trace.step_map[i - num_prompt] < group[0] for i in range(start, start + b)]
            view = [*ids[:start], *[t if s else MASK for t, s in zip(ids[start : start + b], seen, strict=True)]]
            logits = model.logits(torch.tensor([view]), block_size=None if is_full else b)[0, start:]
            logprobs = draw_logprobs(logits, excluded_token_id=MASK)
            for i in positions:
                if trace.step_map[i - num_prompt] in group:
                    out[i - num_prompt] = logprobs[i - start, ids[i]]
    return torch.stack([out[i] for i in range(trace.num_response_tokens)])


FAMILIES = ("sdar", "sdar_moe", "dream", "llada", "mmada")


@grid(4, family=FAMILIES, shrink=[1, 2, 3], normalization=["trace_step", "token", "sequence", "constant"])
def test_packed_rows_are_the_plain_rows(family, shrink, normalization) -> None:
    """Loss to 1e-6, every gradient to 1e-5 of its largest entry: only the order of float32 sums differs."""
    model = opinionated(family)
    params = SamplingParams(max_new_tokens=15, confidence_threshold=0.25, stop_token_ids=(1, 11))
    prompts = random_prompts([0, 3, 4, 9, 6])
    traces = generate(model, [*prompts, prompts[3]], params)  # the last two share a prompt with whole blocks
    advantages = (1.3, -0.7, 0.4, -1.1, 0.0, 0.9)
    rollouts = [Rollout(t, "", advantage=a) for t, a in zip(traces, advantages, strict=True)]
    g = torch.Generator().manual_seed(1)
    for rollout in rollouts:  # old log-probs a little off, so that ratios and KL are not trivial
        noise = torch.randn(len(rollout.trace.logprobs), generator=g) * 0.2
        rollout.trace.logprobs = (torch.tensor(rollout.trace.logprobs) + noise).tolist()
    options = TraceRL.Options(trace_shrink=shrink, kl_beta=0.1, loss_normalization=normalization, constant_length=20)
    objective = TraceRL(options, model.spec)

    def gradients():
        result = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        return result

    rows = objective.rows(rollouts, num_sequences=6)
    for row in rows:
        row.values["old_logprobs"] = row.values["rollout_logprobs"]
    packs = list(pack_rows(rows, max_tokens=45))
    assert len(packs) > 3  # several packs, some responses cut into several rows
    packed = 0.0
    for pack in packs:
        batch = collate(pack)
        loss, _ = objective.loss(score_targets(model, batch, BACKENDS["tiled"]), batch)
        loss.backward()
        packed += loss.item()
    packed_gradients = gradients()

    plain = torch.zeros(())
    num_tokens = sum(r.trace.num_response_tokens for r in rollouts if r.advantage)
    for rollout in (r for r in rollouts if r.advantage):
        trace, n = rollout.trace, rollout.trace.num_response_tokens
        new, old = plain_logprobs(model, trace, shrink).double(), torch.tensor(trace.logprobs[:n]).double()
        ratio, a = (new - old).exp(), rollout.advantage
        token = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) - 0.1 * ((old - new).exp() - 1 + new - old)
        if normalization == "trace_step":
            every = np.arange(len(trace.canvas_ids))
            blocks = (every + len(trace.prompt_ids)) // trace.block_size
            steps = np.where(np.array(trace.step_map) < 0, 10**6, trace.step_map)
            pairs = shrink_steps(0 * blocks if model.spec.attention == "bidirectional" else blocks, steps, shrink)[:n]
            plain = plain + sum(token[torch.from_numpy(pairs == p)].mean() for p in np.unique(pairs)) / 6
        else:
            divisor = {"token": num_tokens, "sequence": 6 * n, "constant": 6 * 20}[normalization]
            plain = plain + token.sum() / divisor
    (-plain).backward()
    assert packed == pytest.approx(-plain.item(), abs=1e-6, rel=1e-6)
    for name, gradient in gradients().items():
        assert (packed_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_token_cost_of_a_ragged_row(model) -> None:
    """P + R + b * (live pairs) at most, where the published layout pays b * (P + 2R)."""
    trace = generate(model, random_prompts([13]), SamplingParams(max_new_tokens=32, confidence_threshold=0.1))[0]
    pairs = len(set(trace.step_map))
    row = trace_row(trace, counts_all=True)
    assert len(row.input_ids) <= 13 + len(trace.canvas_ids) + 4 * pairs
    assert len(row.input_ids) < 4 * (13 + 2 * len(trace.canvas_ids))


def test_kl_estimators() -> None:
    """k1 and k3 are unbiased: their mean under old is KL(old || new) up to sign and noise."""
    old, new = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.6, 0.3, 0.1])
    exact = (old * (old / new).log()).sum()
    assert (old * kl_estimate(new.log(), old.log(), "k1")).sum() == pytest.approx(-exact.item(), abs=1e-7)
    k3 = torch.exp(old.log() - new.log()) - 1 + new.log() - old.log()
    assert torch.allclose(kl_estimate(new.log(), old.log(), "k3"), k3)
    assert (kl_estimate(new.log(), old.log(), "k3") >= 0).all()
    assert torch.allclose(kl_estimate(new.log(), old.log(), "k2"), (new / old).log() ** 2 / 2)

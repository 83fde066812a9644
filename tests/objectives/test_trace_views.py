"""Rows of traces: the worked example, and the ragged row against one row per step written plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.conftest import random_prompts
from unmask.attention import DenseAttention
from unmask.diffusion.drawing import draw_logprobs
from unmask.diffusion.generate import generate
from unmask.errors import UnmaskError
from unmask.objectives.rows import collate, split_rows, target_logprobs
from unmask.objectives.trace_rl import TraceRL, kl_estimate
from unmask.objectives.trace_views import shrink_steps, trace_row
from unmask.types import Rollout, SamplingParams, Trace

MASK = 2


def hand_trace(prompt: list[int], canvas: list[int], step_map: list[int], counted: int, b: int = 4) -> Trace:
    zeros = [0.0] * len(canvas)
    return Trace(prompt, canvas, step_map, zeros, zeros, counted, b, max(step_map) + 1, "length")


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
    row = trace_row(trace, MASK)
    clean, copies = row.input_ids[:4].tolist(), row.input_ids[4:].reshape(-1, 4).tolist()
    assert clean == [5, 6, 10, 11]  # the last block is never seen clean by anyone
    assert copies == [[5, 6, MASK, MASK], [5, 6, MASK, 11], [MASK, MASK, MASK, MASK], [MASK, 13, 14, MASK]]
    assert row.position[4:].reshape(-1, 4).tolist() == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] * 2
    assert row.copy.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4
    targets = list(zip((row.target_column - 4).tolist(), row.target_ids.tolist(), strict=True))
    assert targets == [(3, 11), (6, 10), (9, 13), (12, 12)]  # step 4 unmasks only a token that does not count
    assert row.values["canvas_index"].tolist() == [1, 0, 3, 2]
    everything = trace_row(trace, MASK, response_only=False)
    assert sorted(everything.values["canvas_index"].tolist()) == list(range(6))


def test_nothing_to_train_gives_no_row() -> None:
    assert trace_row(hand_trace([5], [1, 1, 1], [0, 1, 2], counted=0), MASK) is None


def test_a_canvas_of_broken_blocks_is_refused() -> None:
    with pytest.raises(UnmaskError, match="prompt and canvas have 4 tokens, not whole blocks of 3"):
        trace_row(hand_trace([5], [1, 1, 1], [0, 1, 2], counted=3, b=3), MASK)


def plain_logprobs(model, trace: Trace, shrink: int) -> torch.Tensor:
    """One row per (block, merged step), each a plain forward of the sequence up to and including the block."""
    b, num_prompt = trace.block_size, len(trace.prompt_ids)
    ids = trace.prompt_ids + trace.canvas_ids
    out: dict[int, torch.Tensor] = {}
    for start in range(num_prompt // b * b, len(ids), b):
        positions = [i for i in range(start, start + b) if i >= num_prompt]
        steps = sorted({trace.step_map[i - num_prompt] for i in positions})
        for group in (steps[i : i + shrink] for i in range(0, len(steps), shrink)):
            seen = [i < num_prompt or trace.step_map[i - num_prompt] < group[0] for i in range(start, start + b)]
            view = [*ids[:start], *[t if s else MASK for t, s in zip(ids[start : start + b], seen, strict=True)]]
            logits = model.logits(torch.tensor([view]), block_size=b)[0, start:]
            logprobs = draw_logprobs(logits, excluded_token_id=MASK)
            for i in positions:
                if trace.step_map[i - num_prompt] in group:
                    out[i - num_prompt] = logprobs[i - start, ids[i]]
    return torch.stack([out[i] for i in range(trace.num_response_tokens)])


@pytest.mark.parametrize("normalization", ["trace_step", "token", "sequence", "constant"])
@pytest.mark.parametrize("shrink", [1, 2, 3])
def test_ragged_rows_are_the_plain_rows(model, shrink, normalization) -> None:
    """Loss to 1e-6, every gradient to 1e-5 of its largest entry: only the order of float32 sums differs."""
    params = SamplingParams(max_new_tokens=15, confidence_threshold=0.25, stop_token_ids=(1, 11))
    traces = generate(model, random_prompts([0, 3, 4, 9, 6]), params)
    rollouts = [Rollout(t, "", advantage=a) for t, a in zip(traces, (1.3, -0.7, 0.4, -1.1, 0.0), strict=True)]
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

    model.zero_grad()
    rows = objective.rows(rollouts, num_sequences=5)
    assert len(rows) == 4  # advantage 0 trains nothing
    packed = 0.0
    for part in split_rows(rows, max_tokens=150):  # several micro-batches with padding
        batch = collate(part, model.spec.pad_token_id)
        loss, _ = objective.loss(target_logprobs(model, batch, DenseAttention), batch)
        loss.backward()
        packed += loss.item()
    packed_gradients = gradients()

    plain = torch.zeros(())
    num_tokens = sum(r.trace.num_response_tokens for r in rollouts if r.advantage)
    for rollout in (r for r in rollouts if r.advantage):
        trace, n = rollout.trace, rollout.trace.num_response_tokens
        new, old = plain_logprobs(model, trace, shrink), torch.tensor(trace.logprobs[:n])
        ratio, a = (new - old).exp(), rollout.advantage
        token = torch.minimum(ratio * a, ratio.clamp(0.8, 1.2) * a) - 0.1 * ((old - new).exp() - 1 + new - old)
        if normalization == "trace_step":
            every = np.arange(len(trace.canvas_ids))
            pairs = shrink_steps((every + len(trace.prompt_ids)) // trace.block_size, np.array(trace.step_map), shrink)[:n]
            plain = plain + sum(token[torch.from_numpy(pairs == p)].mean() for p in np.unique(pairs)) / 5
        else:
            divisor = {"token": num_tokens, "sequence": 5 * n, "constant": 5 * 20}[normalization]
            plain = plain + token.sum() / divisor
    (-plain).backward()
    assert packed == pytest.approx(-plain.item(), abs=1e-6)
    for name, gradient in gradients().items():
        assert (packed_gradients[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_token_cost_of_a_ragged_row(model) -> None:
    """P + R + b * (live pairs) at most, where the published layout pays b * (P + 2R)."""
    trace = generate(model, random_prompts([13]), SamplingParams(max_new_tokens=32, confidence_threshold=0.1))[0]
    pairs = len(set(trace.step_map))
    row = trace_row(trace, MASK, response_only=False)
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

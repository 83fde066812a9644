"""A policy update on ragged rows against the published row layout, same traces, same decoder, one run.

Published: one row of prompt + 2 x response per round (up to block_size rounds), padded, dense mask, one row at a time.
Ours: one row per response with one noisy copy per live (block, step) pair. Both forward and backward, logits at the
trained positions only (the published code computes them everywhere, and old log-probs in an extra pass: not counted).
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from timing import median_seconds, print_ratios

from unmask.attention import DenseAttention
from unmask.models.checkpoint import new_model
from unmask.objectives.rows import TrainRow, collate, split_rows, target_logprobs
from unmask.objectives.trace_views import trace_row
from unmask.types import Trace


def synthetic_trace(rng: np.random.Generator, num_prompt: int, num_response: int, b: int, per_step: float, vocab: int) -> Trace:
    """A trace with about `per_step` tokens unmasked per denoising step; prompt and response are whole blocks."""
    step_map, step = [], 0
    for _ in range(num_response // b):
        num_steps = min(b, max(1, int(b / per_step + rng.random())))
        steps = np.concatenate((np.arange(num_steps), rng.integers(0, num_steps, b - num_steps)))
        step_map += (step + rng.permutation(steps)).tolist()
        step += num_steps
    ids = rng.integers(3, vocab, num_prompt + num_response).tolist()
    zeros = [0.0] * num_response
    return Trace(ids[:num_prompt], ids[num_prompt:], step_map, zeros, zeros, num_response, b, step, "length")


def published_rows(trace: Trace, mask_token_id: int) -> list[TrainRow]:
    """prompt | clean response | noised response, for each round: the r-th step of every block at once."""
    b, num_prompt, n = trace.block_size, len(trace.prompt_ids), len(trace.canvas_ids)
    step_map, canvas = np.array(trace.step_map).reshape(-1, b), np.array(trace.canvas_ids).reshape(-1, b)
    rank = np.stack([np.unique(block, return_inverse=True)[1].reshape(-1) for block in step_map])
    clean = np.array(trace.prompt_ids + trace.canvas_ids)
    position = np.concatenate((np.arange(num_prompt + n), np.arange(num_prompt, num_prompt + n)))
    rows = []
    for r in range(int(rank.max()) + 1):
        target = (rank == r).ravel().nonzero()[0]
        rows.append(
            TrainRow(
                input_ids=np.concatenate((clean, np.where(rank >= r, mask_token_id, canvas).ravel())),
                position=position,
                block=position // b,
                copy=(np.arange(num_prompt + 2 * n) >= num_prompt + n).astype(np.int64),
                target_column=num_prompt + n + target,
                target_ids=canvas.ravel()[target],
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    vocab = 2048
    special = {"vocab_size": vocab, "eos_token_id": [1], "pad_token_id": 0, "mask_token_id": 2}
    model = new_model("sdar/tiny", 0, hidden_size=128, head_dim=32, intermediate_size=384, **special)
    for num_prompt, num_response, b in ((16, 48, 4), (64, 256, 4), (64, 256, 8)):
        rng = np.random.default_rng(0)
        traces = [synthetic_trace(rng, num_prompt, num_response, b, 2.4, vocab) for _ in range(args.responses)]
        ragged = [row for trace in traces if (row := trace_row(trace, 2))]
        published = [row for trace in traces for row in published_rows(trace, 2)]
        losses = {}

        def update(rows: list[TrainRow], max_tokens: int, name: str, losses: dict = losses) -> None:
            losses[name] = 0.0
            for part in split_rows(rows, max_tokens):
                loss = target_logprobs(model, collate(part, 0), DenseAttention).sum()
                loss.backward()
                losses[name] += loss.item()
            model.zero_grad()

        seconds = median_seconds(
            {
                "published rows, one at a time": lambda p=published: update(p, 1, "published"),
                "ragged rows, one at a time": lambda r=ragged: update(r, 1, "ragged"),
                "ragged rows, micro-batches": lambda r=ragged: update(r, 4096, "batched"),
            },
            args.rounds,
        )
        tokens = {
            name: sum(len(row.input_ids) for row in rows) for name, rows in (("published", published), ("ragged", ragged))
        }
        spread = max(abs(losses[k] / losses["published"] - 1) for k in losses)
        title = f"P={num_prompt} R={num_response} b={b}: tokens {tokens['published']} -> {tokens['ragged']}"
        print_ratios(f"{title}, losses equal to {spread:.0e}", seconds, "published rows, one at a time")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()

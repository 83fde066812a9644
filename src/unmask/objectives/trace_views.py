"""From a trace to training rows: exactly the states the sampler saw, on the block grid it decoded on.

For every live (block, step) pair the row holds one noisy copy of the block as it was when the step began: tokens
unmasked at earlier steps (and prompt tokens heading the block) are visible, those of this and later steps are masked,
those of this step are the targets. TraceRL, arXiv 2509.06949, section 4; the ragged layout is ours.

Shape suffixes: S positions of the sequence, C noisy copies, T positions of a block.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from unmask.attention import AttentionBackend, DenseAttention
from unmask.diffusion.sequence import stop_ids_of
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.objectives.rows import TrainRow, build_row, collate, split_rows, target_logprobs
from unmask.types import Trace


def shrink_steps(block: np.ndarray, step: np.ndarray, trace_shrink: int) -> np.ndarray:
    """Index [S] of the (block, merged step) pair each position belongs to; pairs are numbered by block, then step.

    Within a block the distinct step values are sorted and every `trace_shrink` neighbours merged. Example for one
    block: steps [5, 2, 2, 9, 7] with trace_shrink 2 give pairs [0, 0, 0, 1, 1].
    """
    pairs, pair_of = np.unique(np.stack((block, step)), axis=1, return_inverse=True)
    pair_of = pair_of.reshape(-1)
    if trace_shrink == 1 or not len(step):
        return pair_of
    pair_block = pairs[0]
    is_first = np.concatenate(([True], pair_block[1:] != pair_block[:-1]))
    rank = np.arange(len(pair_block)) - np.maximum.accumulate(np.where(is_first, np.arange(len(pair_block)), 0))
    starts_merged = rank % trace_shrink == 0
    return (np.cumsum(starts_merged) - 1)[pair_of]


def trace_row(trace: Trace, mask_token_id: int, *, trace_shrink: int = 1, response_only: bool = True) -> TrainRow | None:
    """The row of one trace; None when nothing in it is to be trained.

    Values of the row, per target: "old_logprobs" (the sampler's), "canvas_index" (position in the canvas),
    "step" (number of its (block, step) pair in the row, counted from 0).

    response_only: targets are the tokens that count as the response; else every token that was unmasked.
    """
    b, num_prompt = trace.block_size, len(trace.prompt_ids)
    token_ids = np.array(trace.prompt_ids + trace.canvas_ids, dtype=np.int64)
    if len(token_ids) % b:
        raise UnmaskError(f"trace: prompt and canvas have {len(token_ids)} tokens, not whole blocks of {b}")
    position_S = np.arange(len(token_ids))
    block_S, canvas_index_S = position_S // b, position_S - num_prompt
    step_S = np.concatenate((np.full(num_prompt, -1), trace.step_map))

    # The (block, step) pair each position was unmasked in; prompt tokens come before all, what never was after all.
    is_drawn_S = step_S >= 0
    pair_S = np.where(canvas_index_S < 0, -1, np.iinfo(np.int64).max)
    pair_S[is_drawn_S] = shrink_steps(block_S[is_drawn_S], step_S[is_drawn_S], trace_shrink)

    is_trained_S = is_drawn_S & (canvas_index_S < trace.num_response_tokens) if response_only else is_drawn_S
    live_C, first_C = np.unique(pair_S[is_trained_S], return_index=True)
    if not len(live_C):
        return None
    # One noisy copy of its block for each live pair: as it was when the step began.
    block_C = block_S[is_trained_S][first_C]
    position_CT = block_C[:, None] * b + np.arange(b)
    pair_CT, live_C1 = pair_S[position_CT], live_C[:, None]
    noisy_ids_CT = np.where(pair_CT >= live_C1, mask_token_id, token_ids[position_CT])
    is_target_CT = (pair_CT == live_C1) & is_trained_S[position_CT]
    row = build_row(token_ids, b, block_C, noisy_ids_CT, is_target_CT)
    target_canvas = canvas_index_S[position_CT][is_target_CT]
    row.values = {
        "old_logprobs": np.array(trace.logprobs, dtype=np.float32)[target_canvas],
        "canvas_index": target_canvas,
        "step": np.nonzero(is_target_CT)[0],
    }
    return row


def banned_pairs(is_banned: np.ndarray, token_ids: Collection[int], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """(index, token id) of every pair of a position with is_banned [N] and one of the tokens; None if there is none."""
    index, token = np.flatnonzero(is_banned), np.array(sorted(token_ids), dtype=np.int64)
    if not len(index) or not len(token):
        return None
    pairs = torch.from_numpy(np.stack((np.repeat(index, len(token)), np.tile(token, len(index))))).to(device, non_blocking=True)
    return pairs[0], pairs[1]


@torch.no_grad()
def replay_logprobs(
    model: Decoder,
    traces: list[Trace],
    *,
    backend: AttentionBackend = DenseAttention,
    max_tokens: int = 16384,
) -> list[list[float]]:
    """What the trainer computes for each trace: one log-probability per canvas token (0.0 where never unmasked).

    The distribution is that of the trace's own decode settings (temperature, top_k, top_p, tokens banned by min_tokens), as
    in the sampler. Raises `UnmaskError` for full-attention models, whose views are not made yet.
    """
    if model.spec.attention != "block_causal":
        raise UnmaskError(f"replay_logprobs replays block models; {model.spec.family} has {model.spec.attention} attention")
    result = [[0.0] * len(trace.canvas_ids) for trace in traces]
    by_settings: dict[tuple, list[tuple[int, TrainRow]]] = {}
    for i, trace in enumerate(traces):
        row = trace_row(trace, model.spec.mask_token_id, response_only=False)
        if row is not None:
            row.values["trace"] = np.full(len(row.target_ids), i)
            settings = tuple(trace.settings.get(k, d) for k, d in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)))
            stops = (trace.settings.get("min_tokens", 0), stop_ids_of(trace.settings, model.spec))
            by_settings.setdefault((*settings, *stops), []).append((i, row))
    for (temperature, top_k, top_p, min_tokens, stop_ids), indexed in by_settings.items():
        for rows in split_rows([row for _, row in indexed], max_tokens):
            batch = collate(rows, model.spec.pad_token_id, model.device)
            owner = np.concatenate([row.values["trace"] for row in rows])
            index = np.concatenate([row.values["canvas_index"] for row in rows])
            values = target_logprobs(
                model, batch, backend, temperature=temperature, top_k=top_k, top_p=top_p,
                banned=banned_pairs(index < min_tokens, stop_ids, model.device),
            ).tolist()  # fmt: skip
            for i, k, value in zip(owner.tolist(), index.tolist(), values, strict=True):
                result[i][k] = value
    return result

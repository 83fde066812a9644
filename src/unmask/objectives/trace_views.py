"""From a trace to training rows: exactly the states the sampler saw, on the block grid it decoded on.

For every live step there is a view of what the model saw when the step began: tokens unmasked at earlier steps (and
prompt tokens) are visible, those of this and later steps are masked, those of this step are the targets. Block models have
steps per block: a live (block, step) pair is a noisy copy of that block. With full attention a step is a row of its own.
TraceRL, arXiv 2509.06949, section 4; the ragged layout is ours.

Shape suffixes: S positions of the sequence, C views, T positions of a view.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from unmask.attention import AttentionBackend, TiledAttention
from unmask.diffusion.drawing import draw_logprobs
from unmask.diffusion.sequence import stop_ids_of
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.objectives.rows import TrainRow, collate, pack_rows, target_hidden
from unmask.objectives.views import Grid, grid_tokens, make_rows, view_positions
from unmask.types import Trace

LOGITS_AT_A_TIME = 2**24  # elements


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


def trace_rows(
    trace: Trace, grid: Grid, mask_token_id: int, *, trace_shrink: int = 1, is_trained: np.ndarray | None = None
) -> list[TrainRow]:
    """The rows of one trace (block models: one row); none when nothing in it is to be trained.

    Values, per target: "rollout_logprobs" (the sampler's), "canvas_index", and "view", the number of its (block, step) pair
    among those that are trained, counted from 0.

    grid: another than the sampler's shows other states than it saw.
    is_trained: bool [canvas]; None = the tokens that count as the response. What was never unmasked is never trained.
    Raises `UnmaskError` for a canvas that is not whole blocks.
    """
    token_ids_S, block_S = grid_tokens(trace.prompt_ids, trace.canvas_ids, grid, mask_token_id)
    num_prompt, num_canvas, num_beyond = len(trace.prompt_ids), len(trace.canvas_ids), len(block_S) - trace.num_tokens
    if grid.block_size == trace.block_size and grid.is_filled and num_beyond:
        raise UnmaskError(f"trace: prompt and canvas have {trace.num_tokens} tokens, not whole blocks of {trace.block_size}")
    if is_trained is None:
        is_trained = np.arange(num_canvas) < trace.num_response_tokens
    step_S = np.concatenate((np.full(num_prompt, -1), trace.step_map, np.full(num_beyond, -1))).astype(np.int64)
    canvas_index_S = np.arange(len(block_S)) - num_prompt

    # The (block, step) pair each position was unmasked in; prompt tokens come before all, what never was after all.
    is_drawn_S = step_S >= 0
    pair_S = np.where(canvas_index_S < 0, -1, np.iinfo(np.int64).max)
    pair_S[is_drawn_S] = shrink_steps(block_S[is_drawn_S], step_S[is_drawn_S], trace_shrink)
    is_trained_S = is_drawn_S & np.concatenate((np.zeros(num_prompt, bool), is_trained, np.zeros(num_beyond, bool)))
    live_C, first_C = np.unique(pair_S[is_trained_S], return_index=True)
    block_C = block_S[is_trained_S][first_C]

    position_CT = view_positions(block_S, block_C)
    pair_CT, live_C1 = pair_S[position_CT], live_C[:, None]
    noisy_ids_CT = np.where(pair_CT >= live_C1, mask_token_id, token_ids_S[position_CT])
    is_target_CT = (pair_CT == live_C1) & is_trained_S[position_CT]  # where a block is shorter, nothing is read
    is_full = grid.block_size is None
    rows = make_rows(token_ids_S, block_S, num_prompt, position_CT, noisy_ids_CT, is_target_CT, is_full=is_full)
    logprobs = np.array(trace.logprobs, dtype=np.float32)
    for row in rows:
        row.values["rollout_logprobs"] = logprobs[row.values["canvas_index"]]
    return rows


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
    backend: AttentionBackend = TiledAttention,
    max_tokens: int = 16384,
) -> list[list[float]]:
    """What the trainer computes for each trace: one log-probability per canvas token (0.0 where never unmasked).

    The distribution is that of the trace's own decode settings (temperature, top_k, top_p, tokens banned by min_tokens), as
    in the sampler. Of a trace decoded with an approximate cache ("prefix", "dual") these are the exact values, from which
    the sampler's differ. Raises `UnmaskError` for token ids that the model does not have.
    """
    result = [[0.0] * len(trace.canvas_ids) for trace in traces]
    by_settings: dict[tuple, list[TrainRow]] = {}
    for i, trace in enumerate(traces):
        if (largest := max(trace.prompt_ids + trace.canvas_ids, default=0)) >= model.spec.vocab_size:
            raise UnmaskError(f"trace {i}: token id {largest}, but the model's vocabulary has {model.spec.vocab_size} tokens")
        settings = tuple(trace.settings.get(k, d) for k, d in (("temperature", 1.0), ("top_k", 0), ("top_p", 1.0)))
        stops = (trace.settings.get("min_tokens", 0), stop_ids_of(trace.settings, model.spec))
        rows = trace_rows(
            trace, Grid.of(model.spec, trace.block_size), model.spec.mask_token_id,
            is_trained=np.ones(len(trace.canvas_ids), dtype=bool),
        )  # fmt: skip
        for row in rows:
            row.values["trace"] = np.full(len(row.target_ids), i)
        by_settings.setdefault((*settings, *stops), []).extend(rows)
    for (temperature, top_k, top_p, min_tokens, stop_ids), rows in by_settings.items():
        for pack in pack_rows(rows, max_tokens):
            batch = collate(pack, model.device)
            owner, index = (np.concatenate([row.values[key] for row in pack]) for key in ("trace", "canvas_index"))
            hidden_ND = target_hidden(model, batch, backend)
            size = max(1, LOGITS_AT_A_TIME // model.spec.vocab_size)
            for part in (slice(i, i + size) for i in range(0, len(index), size)):
                logprobs_NV = draw_logprobs(
                    model.head(hidden_ND[part]), temperature=temperature, top_k=top_k, top_p=top_p,
                    excluded_token_id=model.spec.mask_token_id,
                    banned=banned_pairs(index[part] < min_tokens, stop_ids, model.device),
                )  # fmt: skip
                values = logprobs_NV.gather(1, batch.target_ids_N[part, None])[:, 0].tolist()
                for i, k, value in zip(owner[part].tolist(), index[part].tolist(), values, strict=True):
                    result[i][k] = value
    return result

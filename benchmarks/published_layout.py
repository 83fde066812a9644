"""The published row layout of a policy update, written plainly; nothing here knows our packing.

A response takes one row of prompt | clean response | noised response per round (the r-th step of every block at once), all
rows padded to the longest prompt and response of the update. One row at a time: attention under a dense mask, logits and
float32 log-softmax at every position, an extra pass without gradients for the old log-probabilities. What such rows share is
kept (the mask of a response's rounds), so that the comparison is not with carelessness.

Shape suffixes: L tokens of a row, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.attention import CLEAN, PAD_DOC, Attend, TokenLayout, visibility
from unmask.models import Decoder
from unmask.types import Rollout


@dataclass(slots=True)
class PublishedRow:
    """One round of a response. `drift_L`: what is added to the old log-probabilities, to stand for earlier updates."""

    input_ids_L: Tensor
    labels_L: Tensor
    is_target_L: Tensor
    drift_L: Tensor
    layout: TokenLayout
    attend: Attend
    advantage: float


class DenseMask:
    """A mask table as numbers to add, the fastest form that scaled_dot_product_attention takes."""

    def __init__(self, layout: TokenLayout, dtype: torch.dtype):
        is_visible = visibility(layout, layout)[:, None]
        self.bias = torch.zeros(is_visible.shape, dtype=dtype, device=is_visible.device)
        self.bias.masked_fill_(~is_visible, -torch.inf)

    def __call__(self, q_BHQD: Tensor, k_BGKD: Tensor, v_BGKD: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q_BHQD, k_BGKD, v_BGKD, attn_mask=self.bias, enable_gqa=True)


def response_rows(
    rollout: Rollout, drift: np.ndarray, num_prompt: int, num_canvas: int, model: Decoder
) -> Iterator[PublishedRow]:
    """The rows of a response, up to one per token of a block; prompts padded on the left, responses on the right.

    Prompts and responses are whole blocks, so that blocks counted from the response are those on absolute positions.
    """
    trace, spec = rollout.trace, model.spec
    b, own, left, right = trace.block_size, len(trace.canvas_ids), num_prompt - len(trace.prompt_ids), num_canvas
    step_map = np.array(trace.step_map).reshape(-1, b)
    rank = np.full(right, -1)
    rank[:own] = np.concatenate([np.unique(block, return_inverse=True)[1].reshape(-1) for block in step_map])
    canvas = np.full(right, spec.pad_token_id)
    canvas[:own] = trace.canvas_ids
    clean = np.concatenate((np.full(left, spec.pad_token_id), trace.prompt_ids, canvas))
    position = np.arange(num_prompt + right) - left
    position = np.concatenate((np.maximum(position, 0), position[num_prompt:]))
    is_noised = np.arange(len(position)) >= num_prompt + right
    is_left_pad = np.arange(len(position)) < left

    def to_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(model.device)

    layout = TokenLayout(
        to_device(np.where(is_left_pad, PAD_DOC, 0))[None],
        to_device(position // b)[None],
        to_device(np.where(is_noised, 1, CLEAN))[None],
        to_device(position)[None],
    )
    attend = DenseMask(layout, model.dtype)
    labels, drift_L = np.concatenate((clean, canvas)), np.zeros(len(position), dtype=np.float32)
    drift_L[num_prompt + right :][:own] = drift
    for r in range(rank.max() + 1):
        noised = np.where(rank >= r, spec.mask_token_id, canvas)
        is_target = np.concatenate((np.zeros(num_prompt + right, dtype=bool), rank == r))
        arrays = (np.concatenate((clean, noised)), labels, is_target, drift_L)
        yield PublishedRow(*(to_device(array) for array in arrays), layout, attend, rollout.advantage)


def row_logprobs(model: Decoder, row: PublishedRow) -> Tensor:
    """Float32 log-probability [L] of every label, from a table of logits [L, V]."""
    hidden = model(row.input_ids_L[None], row.layout, backend=lambda *_: row.attend)
    logprobs_LV = torch.log_softmax(model.head(hidden[0]), dim=-1)
    return logprobs_LV.gather(1, row.labels_L[:, None])[:, 0]


def published_update(
    model: Decoder, rollouts: list[Rollout], drifts: list[np.ndarray], divisor: float, clip_eps: float, kl_beta: float
) -> tuple[float, int]:
    """Loss, gradients left in the model, and the number of tokens forwarded (the extra pass counts once more)."""
    size = [max(map(len, part)) for part in zip(*((r.trace.prompt_ids, r.trace.canvas_ids) for r in rollouts), strict=True)]

    def rows() -> Iterator[PublishedRow]:
        for rollout, drift in zip(rollouts, drifts, strict=True):
            yield from response_rows(rollout, drift, *size, model)

    with torch.no_grad():
        old = [row_logprobs(model, row) + row.drift_L for row in rows()]
    total = 0.0
    for row, old_L in zip(rows(), old, strict=True):
        new_L = row_logprobs(model, row)
        difference_L = (new_L - old_L).clamp(-10, 10)
        ratio_L = difference_L.exp()
        clipped_L = ratio_L.clamp(1 - clip_eps, 1 + clip_eps)
        surrogate_L = torch.minimum(ratio_L * row.advantage, clipped_L * row.advantage)
        kl_L = torch.exp(-difference_L) - 1 + (new_L - old_L)
        loss = -((surrogate_L - kl_beta * kl_L) * row.is_target_L).sum() / divisor
        loss.backward()
        total += loss.item()
    return total, 2 * len(old) * (size[0] + 2 * size[1])

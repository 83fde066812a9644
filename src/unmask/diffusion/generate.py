"""The readable sampler: everything recomputed at every step. The engine is tested against it.

Shape suffixes: B rows, L tokens of the longest row, D model width, N masked positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from unmask.attention import TokenLayout
from unmask.diffusion.denoising import StepRows, denoise
from unmask.diffusion.remasking import get_strategy
from unmask.diffusion.sequence import Decode, DecodingSequence, make_sequence, one_per_prompt
from unmask.errors import UnmaskError
from unmask.types import SamplingParams, Trace

if TYPE_CHECKING:  # diffusion works on any model with this interface and imports none
    from unmask.models.decoder import Decoder


@torch.inference_mode()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    *,
    max_batch_size: int = 256,
    policy_version: int = 0,
    decode: Decode | None = None,
) -> list[Trace]:
    """Decodes each prompt (a list of token ids, possibly empty) and returns its `Trace`, in order.

    params: one for all (then prompt i draws from seed + i), or one per prompt. A sequence's result depends only on its
    prompt, its parameters and the weights, not on the other prompts. decode: token ids to text, for stop strings. Raises
    `UnmaskError` for bad ids or parameters, and for the approximate caches, which are the engine's.
    """
    params = one_per_prompt(params, prompts)
    sequences = [
        make_sequence(f"prompt {i}", prompt, p, model.spec, decode)
        for i, (prompt, p) in enumerate(zip(prompts, params, strict=True))
    ]
    for p in dict.fromkeys(params):
        get_strategy(p.remasking_strategy)
        if p.cache in ("prefix", "dual"):
            raise UnmaskError(f'generate keeps no keys and values; cache "{p.cache}" is for the engine')
    by_length = sorted(sequences, key=lambda sequence: sequence.end)
    for start in range(0, len(by_length), max_batch_size):
        rows = by_length[start : start + max_batch_size]
        while rows:
            rows = _step(model, rows)
    return [sequence.trace(policy_version) for sequence in sequences]


def _step(model: Decoder, rows: list[DecodingSequence]) -> list[DecodingSequence]:
    """One denoising step of each row; returns those that go on."""
    step = StepRows.of(rows, model.device)
    hidden_BLD = _forward(model, rows)
    result = denoise(model.head, hidden_BLD[step.row_N, step.position_N], step, model.spec)
    return [row for row, unmasked in zip(rows, result.fetch(len(rows)), strict=True) if not unmasked.apply(row)]


def _forward(model: Decoder, rows: list[DecodingSequence]) -> Tensor:
    """Hidden states of all that the rows see: block models up to the end of the window, full attention the whole canvas."""
    seen = [row.window[1] if row.is_block_causal else row.end for row in rows]
    ids = np.zeros((len(rows), max(seen)), dtype=np.int64)
    position = np.arange(max(seen))
    block = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : seen[i]] = row.ids[: seen[i]]
        if row.is_block_causal:
            block[i] = position // row.block_size
    ids_BL, block_BL = (torch.from_numpy(table).to(model.device) for table in (ids, block))
    position_BL = torch.from_numpy(position).to(model.device).expand_as(ids_BL)
    is_real_BL = position_BL < torch.tensor(seen, device=model.device)[:, None]
    return model(ids_BL, TokenLayout.from_blocks(position_BL, block_BL, is_real_BL))

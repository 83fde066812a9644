"""Training rows: what an objective hands to the trainer, and how rows become one batch of tensors.

A row holds the tokens of one sequence under the mask rule: its clean copy and its noisy copies. Some of its tokens are
targets: their logits are computed, all others' are not.

Shape suffixes: L tokens of a row, N targets; B rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from unmask.attention import CLEAN, PAD_DOC, AttentionBackend, TokenLayout
from unmask.diffusion.drawing import draw_logprobs
from unmask.models import Decoder


@dataclass(slots=True)
class TrainRow:
    """One sequence with its noisy copies, as int64 arrays [L]; made by an objective, read by `collate`.

    target_column [N]: indices of the targets in the row; target_ids [N]: the tokens to be predicted there.
    values: further float32 arrays [N] that the objective's loss wants back ("weight", "old_logprobs", ...).
    """

    input_ids: np.ndarray
    position: np.ndarray
    block: np.ndarray
    copy: np.ndarray
    target_column: np.ndarray
    target_ids: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(slots=True)
class RowBatch:
    """Rows padded to the longest, on a device. `target_index_N` indexes the flattened [B * L]."""

    input_ids_BL: Tensor
    layout: TokenLayout
    target_index_N: Tensor
    target_ids_N: Tensor
    values: dict[str, Tensor]


def build_row(
    token_ids: np.ndarray, block_size: int, noisy_blocks: np.ndarray, noisy_ids: np.ndarray, is_target: np.ndarray
) -> TrainRow:
    """A row from a clean sequence and its noisy copies of single blocks.

    Args:
        token_ids: [S] the sequence in whole blocks (S a multiple of block_size).
        noisy_blocks: [C] block index of each noisy copy, ascending.
        noisy_ids: [C, block_size] tokens of each noisy copy.
        is_target: bool [C, block_size], targets within the noisy copies.
    """
    num_copies = len(noisy_blocks)
    # Clean tokens are seen by later blocks only: those from the last noisy block on would be seen by nobody.
    num_clean = int(noisy_blocks.max(initial=0)) * block_size
    offset = np.arange(block_size)
    noisy_position = noisy_blocks[:, None] * block_size + offset
    position = np.concatenate((np.arange(num_clean), noisy_position.ravel()))
    copy = np.repeat(np.arange(1, num_copies + 1), block_size)
    target = is_target.ravel().nonzero()[0]
    return TrainRow(
        input_ids=np.concatenate((token_ids[:num_clean], noisy_ids.ravel())),
        position=position,
        block=position // block_size,
        copy=np.concatenate((np.full(num_clean, CLEAN), copy)),
        target_column=num_clean + target,
        target_ids=token_ids[noisy_position.ravel()[target]],
    )


def collate(rows: Sequence[TrainRow], pad_token_id: int, device: torch.device | str = "cpu") -> RowBatch:
    """Pads rows on the right; padding belongs to `PAD_DOC` and is invisible to every real token."""
    longest = max(len(row.input_ids) for row in rows)
    table = np.zeros((5, len(rows), longest), dtype=np.int64)
    input_ids, doc, block, copy, position = table
    input_ids[:], doc[:] = pad_token_id, PAD_DOC
    for i, row in enumerate(rows):
        n = len(row.input_ids)
        input_ids[i, :n], doc[i, :n], block[i, :n] = row.input_ids, 0, row.block
        copy[i, :n], position[i, :n] = row.copy, row.position
    target_index = np.concatenate([i * longest + row.target_column for i, row in enumerate(rows)])
    target_ids = np.concatenate([row.target_ids for row in rows])
    values = {key: np.concatenate([row.values[key] for row in rows]) for key in rows[0].values}
    ids_BL, doc_BL, block_BL, copy_BL, position_BL = torch.from_numpy(table).to(device, non_blocking=True)
    return RowBatch(
        ids_BL,
        TokenLayout(doc_BL, block_BL, copy_BL, position_BL),
        torch.from_numpy(target_index).to(device),
        torch.from_numpy(target_ids).to(device),
        {key: torch.from_numpy(value.astype(np.float32)).to(device) for key, value in values.items()},
    )


def split_rows(rows: Sequence[TrainRow], max_tokens: int) -> Iterator[list[TrainRow]]:
    """Micro-batches of at most `max_tokens` padded tokens each (at least one row), longest rows first.

    Rows of similar length share a micro-batch, so little is spent on padding. The order is a function of the rows
    alone (ties keep their order).
    """
    batch: list[TrainRow] = []
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > max_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def target_logits(model: Decoder, batch: RowBatch, backend: AttentionBackend) -> Tensor:
    """Float32 logits [N, V] at the targets only."""
    hidden_BLD = model(batch.input_ids_BL, batch.layout, backend=backend)
    return model.head(hidden_BLD.flatten(0, 1)[batch.target_index_N])


def target_logprobs(
    model: Decoder, batch: RowBatch, backend: AttentionBackend, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0,
    banned: tuple[Tensor, Tensor] | None = None,
) -> Tensor:  # fmt: skip
    """Float32 log-probabilities [N] of the target tokens under the distribution a sampler draws from (`draw_logprobs`)."""
    logprobs_NV = draw_logprobs(
        target_logits(model, batch, backend), temperature=temperature, top_k=top_k, top_p=top_p,
        excluded_token_id=model.spec.mask_token_id, banned=banned,
    )  # fmt: skip
    return logprobs_NV.gather(1, batch.target_ids_N[:, None])[:, 0]

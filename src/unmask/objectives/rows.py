"""Training rows: what an objective hands to the trainer, and how rows are packed into one row of tensors.

A row holds the tokens of one sequence under the mask rule: its clean copy and its noisy copies. Some of its tokens are
targets: their logits are computed, all others' are not. Rows of several sequences are packed end to end, up to a budget of
tokens: there is no padding. Rows that begin with the same prompt share its clean tokens within a pack.

Shape suffixes: L tokens of a row or pack, N targets, D model width; B = 1 pack.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from unmask.attention import CLEAN, AttentionBackend, TokenLayout, count_visible
from unmask.models import Decoder
from unmask.models.decoder import Backbone
from unmask.models.flops import NO_WORK, Work
from unmask.objectives.fused_head import TargetStats, target_stats


@dataclass(slots=True)
class TrainRow:
    """One sequence with its noisy copies, as int64 arrays [L]; made by an objective, read by `collate`.

    target_column [N]: indices of the targets in the row, ascending; target_ids [N]: the tokens to be predicted there.
    values: further float32 arrays [N] that the objective's loss wants back ("weight", "old_logprobs", ...).
    num_shared: so many leading tokens are clean whole blocks of a prompt, which other rows may begin with, too.
    sample: what the row was made of, for messages: the example's id (RL: and the response's number in its group, "id#3").
    """

    input_ids: np.ndarray
    position: np.ndarray
    block: np.ndarray
    copy: np.ndarray
    target_column: np.ndarray
    target_ids: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    num_shared: int = 0
    sample: str = ""

    @property
    def prefix(self) -> bytes:
        """What rows have in common that share a prompt; empty = nothing to share."""
        return np.concatenate((self.input_ids[: self.num_shared], self.block[: self.num_shared])).tobytes()


@dataclass(slots=True)
class RowBatch:
    """A pack [1, L] of rows, on a device. `target_index_N` indexes its tokens; `work` is what forwarding it takes."""

    input_ids_BL: Tensor
    layout: TokenLayout
    target_index_N: Tensor
    target_ids_N: Tensor
    values: dict[str, Tensor]
    work: Work = NO_WORK


def name_rows(rows: list[TrainRow], sample: str) -> list[TrainRow]:
    """The rows, all of which are of this sample now."""
    for row in rows:
        row.sample = sample
    return rows


def set_weights(rows_of: Sequence[Sequence[TrainRow]], kind: str, constant_length: int, num_sequences: int) -> None:
    """Sets "weight" of every target; `rows_of` has the rows of each response. Weights refer to the whole update.

    trace_step: 1 / tokens of its view / responses. token: 1 / tokens. sequence: 1 / tokens of its response / responses.
    constant: 1 / constant_length / responses.
    """
    num_tokens = sum(len(row.target_ids) for rows in rows_of for row in rows)
    for rows in rows_of:
        num_own = sum(len(row.target_ids) for row in rows)
        for row in rows:
            if kind == "trace_step":
                _, view, size = np.unique(row.values["view"], return_inverse=True, return_counts=True)
                weight = 1.0 / size[view] / num_sequences
            else:
                divisor = {
                    "token": num_tokens, "sequence": num_own * num_sequences, "constant": constant_length * num_sequences
                }[kind]  # fmt: skip
                weight = np.full(len(row.target_ids), 1.0 / divisor)
            row.values["weight"] = weight


def split_row(row: TrainRow, max_tokens: int) -> Iterator[TrainRow]:
    """Rows of at most `max_tokens` tokens that have the row's noisy copies between them, each with the clean tokens it needs.

    Where these would be more than half of the tokens, a row is twice as long as they are: clean tokens are forwarded for
    several copies, never for one alone. A row without noisy copies stays whole.
    """
    edge = np.flatnonzero(np.diff(row.copy, prepend=CLEAN))  # where each noisy copy begins
    if len(row.input_ids) <= max_tokens or len(edge) <= 1:
        yield row
        return
    end = np.append(edge[1:], len(row.copy))
    num_clean = np.searchsorted(row.block[: edge[0]], row.block[edge])  # blocks before its own
    # From the last copy backwards: a row that needs many clean tokens is filled up, the rest needs few.
    pieces, stop = [], len(edge)
    while stop:
        most = max(max_tokens, 2 * num_clean[stop - 1])
        begin = np.searchsorted(edge, num_clean[stop - 1] + end[stop - 1] - most)
        pieces.append((min(begin, stop - 1), stop))
        stop = pieces[-1][0]
    if pieces == [(0, len(edge))] and num_clean[-1] == edge[0]:
        yield row
        return
    for begin, stop in reversed(pieces):
        first, last, clean = edge[begin], end[stop - 1], num_clean[stop - 1]
        kept = np.concatenate((np.arange(clean), np.arange(first, last)))
        is_mine = (row.target_column >= first) & (row.target_column < last)
        yield TrainRow(
            row.input_ids[kept], row.position[kept], row.block[kept], row.copy[kept],
            row.target_column[is_mine] - first + clean, row.target_ids[is_mine],
            {key: value[is_mine] for key, value in row.values.items()}, row.num_shared, row.sample,
        )  # fmt: skip


def fit_rows(rows: Sequence[TrainRow], max_tokens: int) -> list[TrainRow]:
    """The rows, those of more than `max_tokens` tokens split."""
    return [piece for row in rows for piece in split_row(row, max_tokens)]


def pack_rows(rows: Sequence[TrainRow], max_tokens: int) -> Iterator[list[TrainRow]]:
    """Packs of at most `max_tokens` tokens (at least one row), of rows that are split where they are longer.

    Rows with the same prompt follow each other; the order is a function of the rows alone.
    """
    pieces, prefixes = _in_order(fit_rows(rows, max_tokens))
    begin = 0
    for end in _cut(pieces, prefixes, max_tokens):
        yield pieces[begin:end]
        begin = end


def share_packs(rows: Sequence[TrainRow], max_tokens: int, num_ranks: int) -> list[list[list[TrainRow]]]:
    """Packs as of `pack_rows`, for each of the ranks its own: equally many, or one less where there are not enough rows, and
    of nearly equal numbers of tokens, so that no rank waits long for another.

    The packs are cut to the smallest budget that makes no further round of them necessary.
    """
    pieces, prefixes = _in_order(fit_rows(rows, max_tokens))
    ends = list(_cut(pieces, prefixes, max_tokens))
    num_packs = -(-len(ends) // num_ranks) * num_ranks
    too_small, budget = 0, max_tokens
    while num_ranks > 1 and budget - too_small > 1:
        tried = (budget + too_small) // 2
        found = list(_cut(pieces, prefixes, tried))
        if len(found) <= num_packs:
            budget, ends = tried, found
        else:
            too_small = tried
    packs = [pieces[begin:end] for begin, end in pairwise([0, *ends])]
    return [packs[rank::num_ranks] for rank in range(num_ranks)]


def _in_order(pieces: Sequence[TrainRow]) -> tuple[list[TrainRow], list[bytes]]:
    """Those with the same prompt one after the other, and these prompts."""
    prefixes = [piece.prefix for piece in pieces]
    first_use = {prefix: i for i, prefix in reversed(list(enumerate(prefixes)))}
    order = sorted(range(len(pieces)), key=lambda i: first_use[prefixes[i]] if prefixes[i] else i)
    return [pieces[i] for i in order], [prefixes[i] for i in order]


def _cut(pieces: Sequence[TrainRow], prefixes: Sequence[bytes], max_tokens: int) -> Iterator[int]:
    """Where packs of at most `max_tokens` tokens (at least one row) end."""
    num_tokens, present = 0, set[bytes]()
    for i, (piece, prefix) in enumerate(zip(pieces, prefixes, strict=True)):
        more = len(piece.input_ids) - (piece.num_shared if prefix in present else 0)
        if num_tokens and num_tokens + more > max_tokens:
            yield i
            num_tokens, present, more = 0, set(), len(piece.input_ids)
        num_tokens += more
        present.add(prefix)
    if pieces:
        yield len(pieces)


def collate(rows: Sequence[TrainRow], device: torch.device | str = "cpu") -> RowBatch:
    """Lays rows end to end. A prompt that several of them begin with is laid down once, and seen by all of them."""
    prefixes = [row.prefix for row in rows]
    shared = {prefix for prefix, count in Counter(prefixes).items() if prefix and count > 1}
    doc_of: dict[bytes, int] = {}
    parts, target_index, num_tokens, doc = [], [], 0, 0
    for row, prefix in zip(rows, prefixes, strict=True):
        cut = row.num_shared if prefix in shared else 0
        if cut and prefix not in doc_of:
            doc_of[prefix] = doc
            parts.append(_fields(row, slice(0, cut), doc, doc))
            num_tokens, doc = num_tokens + cut, doc + 1
        parts.append(_fields(row, slice(cut, None), doc, doc_of[prefix] if cut else doc))
        target_index.append(row.target_column - cut + num_tokens)
        num_tokens, doc = num_tokens + len(row.input_ids) - cut, doc + 1
    fields, index_N = np.concatenate(parts, 1), np.concatenate(target_index)
    ids_BL, doc_BL, block_BL, copy_BL, position_BL, prefix_BL = torch.from_numpy(fields).to(device, non_blocking=True)[:, None]
    values = {key: np.concatenate([row.values[key] for row in rows]) for key in rows[0].values}
    return RowBatch(
        ids_BL,
        TokenLayout(doc_BL, block_BL, copy_BL, position_BL, prefix_BL),
        torch.from_numpy(index_N).to(device),
        torch.from_numpy(np.concatenate([row.target_ids for row in rows])).to(device),
        {key: torch.from_numpy(value.astype(np.float32)).to(device) for key, value in values.items()},
        _work(fields, index_N),
    )


def _work(fields: np.ndarray, target_index_N: np.ndarray) -> Work:
    """Of a forward of the tokens with these `_fields` that reads and scores the targets."""
    _, doc_L, block_L, copy_L, _, prefix_L = fields
    num_visible_L = count_visible(doc_L, prefix_L, block_L, copy_L)
    num_targets = len(target_index_N)
    pairs = int(num_visible_L.sum()), int(num_visible_L[target_index_N].sum())
    return Work(len(doc_L), pairs[0], num_targets, pairs[1], num_targets)


def _fields(row: TrainRow, part: slice, doc: int, prefix: int) -> np.ndarray:
    """Int64 [6, L]: the token ids, and the fields of a `TokenLayout` in order."""
    ids = row.input_ids[part]
    docs, prefixes = np.full_like(ids, doc), np.full_like(ids, prefix)
    return np.stack((ids, docs, row.block[part], row.copy[part], row.position[part], prefixes))


def target_hidden(model: Backbone, batch: RowBatch, backend: AttentionBackend) -> Tensor:
    """Final hidden states [N, D] of the targets."""
    return model(batch.input_ids_BL, batch.layout, backend=backend, read_N=batch.target_index_N)[0]


def score_targets(
    model: Decoder, batch: RowBatch, backend: AttentionBackend, *, temperature: float = 1.0, excludes_mask: bool = True
) -> TargetStats:
    """Log-probabilities of the targets under the distribution a sampler with this temperature draws from, and more.

    excludes_mask: False leaves the mask token in the distribution, as cross-entropy does.
    """
    excluded = model.spec.mask_token_id if excludes_mask else None
    hidden_ND = target_hidden(model, batch, backend)
    return target_stats(model, hidden_ND, batch.target_ids_N, temperature=temperature, excluded_token_id=excluded)

"""From a plan's rows to the index arrays of one forward: computed with NumPy, then moved to the device.

Shape suffixes: R rows, N tokens of the forward, M of them are kept, T queries, S key positions and P pages of a row in a group.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unmask.attention import PAD_DOC, TokenLayout
from unmask.engine.paged import RowGroup
from unmask.engine.request import Row


@dataclass(slots=True)
class Batch:
    """The tensors of one forward; indices int64.

    ids_1N and layout: the packed tokens, one `doc` per row.
    groups, token_M, slot_M, order_N: see `PagedForward`.
    first_R: where each row's tokens begin in the packed row (on the host).
    is_decoding: every row is at a block, or at two; nothing is prefilled.
    num_pairs: of a token and one that it sees.
    """

    ids_1N: Tensor
    layout: TokenLayout
    groups: list[RowGroup]
    token_M: Tensor
    slot_M: Tensor
    order_N: Tensor
    first_R: np.ndarray
    is_decoding: bool
    num_pairs: int


def build_batch(rows: list[Row], page_size: int, device: torch.device, *, in_one_group: bool = False) -> Batch:
    """in_one_group: rows that decode are not sorted into groups of similar length."""
    start_R, end_R, key_end_R, grid_R = np.array([(r.query_start, r.query_end, r.key_end, _grid(r)) for r in rows]).T
    length_R = end_R - start_R
    first_R = np.cumsum(length_R) - length_R
    row_N = np.repeat(np.arange(len(rows)), length_R)
    position_N = np.arange(len(row_N)) + (start_R - first_R)[row_N]
    block_N = position_N // grid_R[row_N]
    ids_N = np.concatenate([r.request.sequence.ids[r.query_start : r.query_end] for r in rows])

    num_pages_R = np.array([len(r.request.pages) for r in rows])
    table_RP = np.zeros((len(rows), int(num_pages_R.max())), dtype=np.int64)
    for i, row in enumerate(rows):
        table_RP[i, : num_pages_R[i]] = row.request.pages
    token_M = np.flatnonzero(np.array([r.request.uses_pages for r in rows])[row_N])
    position_M = position_N[token_M]
    slot_M = table_RP[row_N[token_M], position_M // page_size] * page_size + position_M % page_size

    def to_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array)).to(device, non_blocking=True)

    groups, order_N, num_queries = [], np.empty(len(row_N), dtype=np.int64), 0
    is_alone_R = (start_R == 0) & (end_R == key_end_R)  # sees nothing but the forward's own tokens
    is_decoding = not is_alone_R.any() and bool((length_R <= 2 * grid_R).all())
    everything = [np.arange(len(rows))]
    for members in everything if is_decoding and in_one_group else group_rows(is_alone_R, length_R, key_end_R):
        widest = int(length_R[members].max())
        column_T = np.arange(widest)
        is_query_RT = column_T < length_R[members, None]
        query_RT = first_R[members, None] + np.where(is_query_RT, column_T, 0)
        order_N[query_RT[is_query_RT]] = num_queries + np.flatnonzero(is_query_RT)
        num_queries += is_query_RT.size
        longest = int(key_end_R[members].max())
        page_RP = key_RS = None
        if is_alone_R[members[0]]:
            key_RS = first_R[members, None] + np.minimum(np.arange(longest), length_R[members, None] - 1)
        else:
            page_RP = table_RP[members, : -(-longest // page_size)]
            longest = page_RP.shape[1] * page_size
        position_RS = np.broadcast_to(np.arange(longest), (len(members), longest))
        is_key_RS = position_RS < key_end_R[members, None]
        q = (np.zeros_like(query_RT), block_N[query_RT], np.zeros_like(query_RT), position_N[query_RT])
        k = (np.where(is_key_RS, 0, PAD_DOC), position_RS // grid_R[members, None], np.zeros_like(is_key_RS, int), position_RS)
        groups.append(
            RowGroup(
                to_device(query_RT),
                None if page_RP is None else to_device(page_RP),
                None if key_RS is None else to_device(key_RS),
                TokenLayout(*(to_device(a) for a in q)),
                TokenLayout(*(to_device(a) for a in k)),
            )
        )
    doc, block, position = (to_device(array)[None] for array in (row_N, block_N, position_N))
    layout = TokenLayout(doc, block, torch.zeros_like(doc), position)
    ids_1N = to_device(ids_N)[None]
    num_pairs = int(np.minimum((block_N + 1) * grid_R[row_N], key_end_R[row_N]).sum())  # all up to the end of its block
    return Batch(
        ids_1N, layout, groups, to_device(token_M), to_device(slot_M), to_device(order_N), first_R, is_decoding, num_pairs
    )


def group_rows(is_alone_R: np.ndarray, length_R: np.ndarray, key_end_R: np.ndarray) -> list[np.ndarray]:
    """Rows to be attended together: the same kind, at most twice as many queries and about twice as many keys as the least.

    A group's rows are padded to its longest. Where there are enough of both to be worth two calls, rows of one and of two
    blocks are not (11 % of the time of a run on a CPU; docs/log.md).
    """
    order = np.lexsort((key_end_R, length_R, is_alone_R)).tolist()
    by_queries: list[list[int]] = []
    for i in order:
        group = by_queries[-1] if by_queries else None
        if (
            group
            and is_alone_R[group[0]] == is_alone_R[i]
            and (length_R[i] == length_R[group[0]] or (len(group) < 8 and length_R[i] <= 2 * length_R[group[0]]))
        ):
            group.append(i)
        else:
            by_queries.append([i])
    groups: list[list[int]] = []
    for members in by_queries:
        members.sort(key=lambda i: key_end_R[i])
        groups.append([members[0]])
        for i in members[1:]:
            if key_end_R[i] <= 2 * key_end_R[groups[-1][0]] + 64:
                groups[-1].append(i)
            else:
                groups.append([i])
    return [np.array(group) for group in groups]


def _grid(row: Row) -> int:
    """Block size for the mask rule; full attention is one block for the whole sequence."""
    sequence = row.request.sequence
    return sequence.block_size if sequence.is_block_causal else sequence.end

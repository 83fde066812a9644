"""Tiled backend: dense attention on what can be visible only. For CPUs.

Queries are taken in tiles of neighbours. A tile meets the keys that at least one of its queries sees, and the rule decides
within. A packed row of many sequences and noisy copies is mostly invisible to itself: what a dense table of the whole
row would compute in vain is not computed. Tiles with similar numbers of keys share one call.

Shape suffixes: T tiles of a call, Q queries of a tile, K key columns of a tile; H query heads, G key/value heads,
D head_dim; B rows, L tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unmask.attention.dense import replayable
from unmask.attention.rule import CLEAN, PAD_DOC, TokenLayout, is_visible

TILE = 64  # queries; larger tiles see more keys in vain, smaller ones make the kernel slow (docs/log.md)
LONG = 128  # a sequence of more tiles than this gets larger ones: its keys are gathered anew for each tile
SPREAD = 1.25  # tiles share a call while the largest has at most so many times the keys of the smallest


@dataclass(slots=True)
class TileGroup:
    """Tiles of one call, as indices into the flattened [B * L] queries and keys."""

    query_TQ: Tensor
    key_TK: Tensor
    is_hidden_TQK: Tensor


class TiledAttention:
    """Holds the tiles of one forward; all layers share them."""

    def __init__(self, q: TokenLayout, k: TokenLayout):
        num_docs = int(max(x.amax() for x in (q.doc_BL, q.prefix_doc_BL, k.doc_BL))) - PAD_DOC + 1
        q_fields, k_fields = _flatten(q, num_docs), _flatten(k, num_docs)
        num_queries, tile = q_fields.shape[1], _tile_size(k_fields[0])
        self.groups: list[TileGroup] = []
        place = []  # of every query that is computed, those that fill up the last tile included
        for tiles, keys in _plan(q_fields, k_fields, tile):
            place.append(tiles[:, None] * tile + np.arange(tile))
            queries, columns = np.minimum(place[-1], num_queries - 1), np.maximum(keys, 0)
            q_doc, q_prefix, q_block, q_copy = q_fields[:, queries][..., None]
            k_doc, _, k_block, k_copy = k_fields[:, columns][:, :, None]
            is_seen_TQK = is_visible(q_doc, q_prefix, q_block, q_copy, k_doc, k_block, k_copy) & (keys >= 0)[:, None]
            on_device = (torch.from_numpy(a).to(q.doc_BL.device) for a in (queries, columns, ~is_seen_TQK))
            self.groups.append(TileGroup(*on_device))
        order_N = np.argsort(np.concatenate([p.ravel() for p in place]))[:num_queries]
        self.order_N = torch.from_numpy(order_N).to(q.doc_BL.device)
        self._bias: dict[torch.dtype, list[Tensor]] = {}  # the mask as numbers to add, made once for all layers

    def __call__(self, q_BHLD: Tensor, k_BGLD: Tensor, v_BGLD: Tensor) -> Tensor:
        rows, num_heads, length, head_dim = q_BHLD.shape
        q, k, v = (x.transpose(1, 2).flatten(0, 1).flatten(1) for x in replayable(q_BHLD, k_BGLD, v_BGLD))
        outputs = []
        for group, bias in zip(self.groups, self._biases(q.dtype), strict=True):
            q_THQD, k_TGKD, v_TGKD = (
                x.index_select(0, index.flatten()).view(*index.shape, -1, head_dim).transpose(1, 2)
                for x, index in ((q, group.query_TQ), (k, group.key_TK), (v, group.key_TK))
            )
            out_THQD = F.scaled_dot_product_attention(q_THQD, k_TGKD, v_TGKD, attn_mask=bias, enable_gqa=True)
            outputs.append(out_THQD.transpose(1, 2).flatten(0, 1).flatten(1))
        out = torch.cat(outputs).index_select(0, self.order_N)
        return out.view(rows, length, num_heads, head_dim).transpose(1, 2).to(q_BHLD.dtype)

    def _biases(self, dtype: torch.dtype) -> list[Tensor]:
        if dtype not in self._bias:
            self._bias[dtype] = [
                torch.zeros(group.is_hidden_TQK.shape, dtype=dtype, device=group.key_TK.device)
                .masked_fill_(group.is_hidden_TQK, -torch.inf)
                .unsqueeze(1)
                for group in self.groups
            ]
        return self._bias[dtype]


def _flatten(layout: TokenLayout, num_docs: int) -> np.ndarray:
    """Int32 [4, B * L]: doc, prefix, block, copy of every token, the sequences of different rows kept apart."""
    fields = (layout.doc_BL, layout.prefix_doc_BL, layout.block_BL, layout.copy_BL)
    doc, prefix, block, copy = torch.stack(fields).int().cpu().numpy()
    apart = np.arange(len(doc), dtype=np.int32)[:, None] * num_docs
    return np.stack((doc - PAD_DOC + apart, prefix - PAD_DOC + apart, block, copy)).reshape(4, -1)


def _tile_size(doc: np.ndarray) -> int:
    """Queries of a tile: `TILE`, doubled for as long as the longest sequence has the tokens of 2 * `LONG` such tiles.

    What a larger tile sees in vain is then still less than a hundredth of what its queries see.
    """
    longest, size = int(np.bincount(doc).max()), TILE
    while longest >= 2 * LONG * size:
        size *= 2
    return size


def _plan(q: np.ndarray, k: np.ndarray, tile: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tiles [T] of `tile` queries that share a call, with their key columns [T, K], filled up with -1."""
    num_queries, num_keys, num_tiles = q.shape[1], k.shape[1], -(-q.shape[1] // tile)
    tile_N = np.arange(num_queries) // tile
    # Sequences, blocks and copies as digits of one number, so that what a query sees is a few ranges of sorted keys.
    docs, doc = np.unique(np.concatenate((q[0], q[1], k[0])), return_inverse=True)
    q_doc, q_prefix, k_doc = np.split(doc, (num_queries, 2 * num_queries))
    blocks, copies = (1 + int(max(q[i].max(), k[i].max())) for i in (2, 3))

    # Clean keys of a sequence in blocks before the last one that the tile has of it.
    clean = np.flatnonzero(k[3] == CLEAN)
    clean_key = k_doc[clean] * blocks + k[2][clean]
    by_key = np.argsort(clean_key, kind="stable")
    last_block = np.full((num_tiles, len(docs)), -1)
    for sequence in (q_doc, q_prefix):
        np.maximum.at(last_block, (tile_N, sequence), q[2])
    tile_C, doc_C = np.nonzero(last_block >= 0)
    first, last = (np.searchsorted(clean_key[by_key], doc_C * blocks + until) for until in (0, last_block[tile_C, doc_C]))
    before = _ranges(tile_C, first, last, clean[by_key])

    # Keys of a query's own block in its own copy.
    q_key, k_key = ((d * copies + x[3]) * blocks + x[2] for d, x in ((q_doc, q), (k_doc, k)))
    by_key = np.argsort(k_key, kind="stable")
    tile_G, own_G = np.unique(np.stack((tile_N, q_key)), axis=1)
    first, last = (np.searchsorted(k_key[by_key], own_G, side=side) for side in ("left", "right"))
    own = _ranges(tile_G, first, last, by_key)

    # Each tile's columns once (a table of marks is faster than a sort), tiles of similar size together.
    is_met_TK = np.zeros((num_tiles, num_keys), dtype=bool)
    for tile_E, column_E in (before, own):
        is_met_TK[tile_E, column_E] = True
    column_E = is_met_TK.nonzero()[1]
    count_T = is_met_TK.sum(1)
    start_T = np.cumsum(count_T) - count_T
    by_size, calls, begin = np.argsort(-count_T, kind="stable"), [], 0
    while begin < num_tiles:
        size = count_T[by_size[begin]]
        end = begin + np.searchsorted(-count_T[by_size[begin:]], -size / SPREAD, side="right")
        tiles, place = by_size[begin:end], np.arange(size)
        index = np.minimum(start_T[tiles][:, None] + place, len(column_E) - 1)
        calls.append((tiles, np.where(place < count_T[tiles][:, None], column_E[index], -1)))
        begin = end
    return calls


def _ranges(tile: np.ndarray, first: np.ndarray, last: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(tile, column) for all of columns[first:last] of each tile."""
    length = last - first
    offset = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return np.repeat(tile, length), columns[np.repeat(first, length) + offset]

"""Keys and values in pages, and attention of a ragged batch over them.

All tokens of a forward lie in one packed row [1, N]: what works token by token (projections, norms, MLP) sees no padding.
Attention works on rows: each row's queries see its own positions below `key_end`, by the mask rule. New keys and values
are written to their pages first; a window's are simply written again at the next step, so that committing costs nothing.

Shape suffixes: N tokens of the forward, R rows of a group, T queries of a row, S key positions of a row, P pages of a row,
H query heads, G key/value heads, K head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from unmask.attention import PAD_DOC, TokenLayout, is_visible, visibility
from unmask.attention.flex import compiled_flex_attention
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.models.spec import ModelSpec


@dataclass(slots=True)
class RowGroup:
    """Rows of a forward that are attended together.

    query_RT: index into the packed tokens; rows with fewer queries repeat one. page_RP: their pages; None: the rows see
    the forward's own tokens only, key_RS then says which. q, k: positions and blocks, for the rule.
    """

    query_RT: Tensor
    page_RP: Tensor | None
    key_RS: Tensor | None
    q: TokenLayout
    k: TokenLayout


class PagedKV:
    """Keys and values of all layers: [layers, pages, page_size, G, K], zero at first, allocated at the first write.

    On a CPU, float32 models keep them in float64: attention is evaluated in it there (docs/log.md), and converting all of
    them at every step would cost more than the memory.
    """

    def __init__(self, spec: ModelSpec, num_pages: int, page_size: int, device: torch.device):
        self.shape = (spec.num_layers, num_pages + 1, page_size, spec.num_kv_heads, spec.head_dim)
        self.page_size, self.device = page_size, device
        self.spare_page = num_pages  # takes what padding writes
        self.k = self.v = torch.empty(0, device=device)
        self.space: dict[str, Tensor] = {}  # for copies of pages, by name

    @staticmethod
    def bytes_per_token(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> int:
        size = storage_dtype(dtype, device).itemsize
        return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * size

    def allocate(self, dtype: torch.dtype) -> None:
        """dtype: of the keys and values that come (under autocast not that of the weights)."""
        if self.k.numel() and self.k.dtype != storage_dtype(dtype, self.device):
            raise UnmaskError(
                f"the engine keeps {self.k.dtype} keys and values and now gets {dtype}: use one precision, or another engine"
            )
        if not self.k.numel():
            try:
                self.k, self.v = (zeros(self.shape, storage_dtype(dtype, self.device), self.device) for _ in range(2))
            except (MemoryError, torch.OutOfMemoryError):
                raise UnmaskError(
                    f"no memory for {self.shape[1]} pages of {self.page_size} tokens; lower kv_memory_gb or num_pages"
                ) from None

    def clear(self) -> None:
        """Gives the memory back; the next write allocates it anew, all zero."""
        self.k = self.v = torch.empty(0, device=self.device)

    def copy_pages(self, source: list[int], target: list[int]) -> None:
        if source and self.k.numel():
            source_C, target_C = (torch.tensor(pages, device=self.device) for pages in (source, target))
            self.k[:, target_C] = self.k[:, source_C]  # read as a whole before anything is written
            self.v[:, target_C] = self.v[:, source_C]

    def gather(self, name: str, pool: Tensor, page_RP: Tensor) -> Tensor:
        """[R, P * page_size, G, K] of one layer, in memory that the next call with this name uses again."""
        rows, num_pages = page_RP.shape
        shape = (rows * num_pages, *pool.shape[1:])
        numel = shape[0] * pool[0].numel()
        space = self.space.get(name)
        if space is None or space.numel() < numel or space.dtype != pool.dtype:
            space = self.space[name] = torch.empty(max(1, numel), dtype=pool.dtype, device=pool.device)
        out = space[:numel].view(shape)
        torch.index_select(pool, 0, page_RP.reshape(-1), out=out)
        return out.view(rows, num_pages * shape[1], *shape[2:])


def zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On a CPU, memory that the system hands out page by page when it is written to: a large pool costs what it is used."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)).view(dtype).view(shape)


def storage_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    return torch.float64 if dtype == torch.float32 and device.type == "cpu" else dtype


class PagedForward:
    """The cache and the attention of one forward; made anew for each, shared by its layers.

    slot_M, token_M: new tokens that are kept (index into the packed tokens) and where (page * page_size + offset).
    order_N: for each packed token its place in the concatenation of all groups' queries.
    """

    def __init__(
        self, kv: PagedKV, groups: list[RowGroup], token_M: Tensor, slot_M: Tensor, order_N: Tensor, backend: RowBackend
    ):
        self.kv, self.token_M, self.slot_M, self.order_N = kv, token_M, slot_M, order_N
        self._groups = [(group, DenseRows(group, kv) if group.page_RP is None else backend(group, kv)) for group in groups]

    def attention(self, layout: TokenLayout) -> PagedForward:
        return self  # the groups know what is seen

    def extend(self, layer: int, k_1GNK: Tensor, v_1GNK: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the new keys and values to their pages; returns them packed, [N, G, K]."""
        self.layer = layer
        k_NGK, v_NGK = k_1GNK[0].transpose(0, 1), v_1GNK[0].transpose(0, 1)
        dtype = storage_dtype(v_NGK.dtype, self.kv.device)
        k_NGK, v_NGK = k_NGK.to(dtype), v_NGK.to(dtype)
        if len(self.slot_M):
            self.kv.allocate(dtype)
            for pool, new_NGK in ((self.kv.k, k_NGK), (self.kv.v, v_NGK)):
                pool[layer].flatten(0, 1).index_copy_(0, self.slot_M, new_NGK[self.token_M])
        return k_NGK, v_NGK

    def __call__(self, q_1HNK: Tensor, k_NGK: Tensor, v_NGK: Tensor) -> Tensor:
        """Attention output [1, H, N, K]."""
        q_NHK = q_1HNK[0].transpose(0, 1).to(k_NGK.dtype)
        outs = []
        for group, attend in self._groups:
            if group.key_RS is not None:
                out_RTHK = attend(q_NHK[group.query_RT], k_NGK[group.key_RS], v_NGK[group.key_RS])
            else:
                out_RTHK = attend(q_NHK[group.query_RT], self.kv.k[self.layer], self.kv.v[self.layer])
            outs.append(out_RTHK.flatten(0, 1))
        out_NHK = (outs[0] if len(outs) == 1 else torch.cat(outs))[self.order_N]
        return out_NHK.to(q_1HNK.dtype).transpose(0, 1)[None]


class AttendRows(Protocol):
    """Attention of one group of rows: queries [R, T, H, K] to [R, T, H, K].

    Keys and values are a layer's pages [pages, page_size, G, K], of which the rows see `page_RP`; for a group without pages
    they are given row by row [R, S, G, K].
    """

    def __call__(self, q_RTHK: Tensor, k: Tensor, v: Tensor, /) -> Tensor: ...


RowBackend = Callable[[RowGroup, PagedKV], AttendRows]


class DenseRows:
    """Pages copied together, the rule as a boolean mask for PyTorch's scaled_dot_product_attention. Runs everywhere."""

    def __init__(self, group: RowGroup, kv: PagedKV):
        self.group, self.kv = group, kv
        self._bias: Tensor | None = None  # the mask as numbers to add, made once for all layers

    def __call__(self, q_RTHK: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.group.page_RP is not None:
            k, v = self.kv.gather("k", k, self.group.page_RP), self.kv.gather("v", v, self.group.page_RP)
        # The query heads of a key head are laid side by side as queries: K and V are read once for all of them.
        rows, num_queries, num_heads, head_dim = q_RTHK.shape
        num_groups = k.shape[2]
        share = num_heads // num_groups
        q = q_RTHK.view(rows, num_queries, num_groups, share, head_dim).permute(0, 2, 3, 1, 4)
        q = q.reshape(rows, num_groups, share * num_queries, head_dim)
        if self._bias is None:
            is_hidden = ~visibility(self.group.q, self.group.k)[:, None].expand(-1, share, -1, -1)
            bias = torch.zeros(is_hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(is_hidden, -torch.inf)
            self._bias = bias.view(rows, 1, share * num_queries, -1)
        out = F.scaled_dot_product_attention(q, k.transpose(1, 2), v.transpose(1, 2), attn_mask=self._bias)
        return out.view(rows, num_groups, share, num_queries, head_dim).permute(0, 3, 1, 2, 4).reshape(q_RTHK.shape)


class FlexRows:
    """FlexAttention on the pages where they lie: a block of its mask is a page. For GPUs."""

    def __init__(self, group: RowGroup, kv: PagedKV):
        assert group.page_RP is not None
        q, k, page_size, num_pages = group.q, group.k, kv.page_size, kv.shape[1]
        rows, num_queries = group.query_RT.shape
        place_P = torch.arange(group.page_RP.shape[1], device=kv.device)
        num_used_R = ((k.doc_BL != PAD_DOC).sum(1) + page_size - 1) // page_size
        # From a page to its place in the row, -1 = none; what a row's table has beyond its pages goes to an extra column.
        page_RP = torch.where(place_P < num_used_R[:, None], group.page_RP, num_pages)
        place_of = torch.full((rows, num_pages + 1), -1, device=kv.device).scatter_(1, page_RP, place_P.expand_as(page_RP))
        place_of[:, num_pages] = -1

        def mask_mod(b, h, q_index, slot):
            place = place_of[b, slot // page_size]
            position = place.clamp(min=0) * page_size + slot % page_size
            seen = is_visible(
                q.doc_BL[b, q_index], q.doc_BL[b, q_index], q.block_BL[b, q_index], q.copy_BL[b, q_index],
                k.doc_BL[b, position], k.block_BL[b, position], k.copy_BL[b, position],
            )  # fmt: skip
            return seen & (place >= 0)

        query_block = 128
        num_blocks = -(-num_queries // query_block)
        self.block_mask = BlockMask.from_kv_blocks(
            num_used_R.int()[:, None, None].expand(-1, 1, num_blocks).contiguous(),
            group.page_RP.int()[:, None, None].expand(-1, 1, num_blocks, -1).contiguous(),
            BLOCK_SIZE=(query_block, page_size), mask_mod=mask_mod, seq_lengths=(num_queries, num_pages * page_size),
            compute_q_blocks=False,  # for backward only; would need as many columns as the pool has pages
        )  # fmt: skip
        self._attend = compiled_flex_attention() if kv.device.type == "cuda" else flex_attention

    def __call__(self, q_RTHK: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k_1GSK, v_1GSK = (pool.flatten(0, 1).transpose(0, 1)[None] for pool in (k, v))
        out = self._attend(q_RTHK.transpose(1, 2), k_1GSK, v_1GSK, block_mask=self.block_mask, enable_gqa=True)
        return out.transpose(1, 2)


ROW_BACKENDS: dict[str, RowBackend] = {"dense": DenseRows, "flex": FlexRows}


def pick_row_backend(name: str, model: Decoder) -> RowBackend:
    """ "auto": FlexAttention on GPUs whose kernels take the model's heads, else the dense one. Raises `UnmaskError`."""
    if name == "auto":
        head_dim = model.spec.head_dim
        fits = head_dim >= 16 and head_dim & (head_dim - 1) == 0  # a power of two
        name = "flex" if model.device.type == "cuda" and fits else "dense"
    if name not in ROW_BACKENDS:
        raise UnmaskError(f"unknown attention_backend {name!r} of the engine; known: auto, {', '.join(ROW_BACKENDS)}")
    return ROW_BACKENDS[name]

"""Decoding forwards of padded shape, recorded once per shape and replayed (CUDA graphs).

A decoding forward is small, and on a GPU the time of launching its kernels can exceed the time they run. Its tensors are
padded to a few sizes and copied into buffers that stay where they are; the recording reads these.

Shape suffixes: N tokens, R rows, T queries, P pages and S key positions of a row.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.attention import PAD_DOC, TokenLayout
from unmask.engine.batch import Batch
from unmask.engine.paged import PagedForward, PagedKV, RowBackend, RowGroup
from unmask.models import Decoder

Replay = Callable[[], Tensor]
Capture = Callable[[Callable[[], Tensor]], Replay]


def capture_cuda_graph(run: Callable[[], Tensor]) -> Replay:
    """Records what `run` launches; the returned function launches it again and returns the same output tensor."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles and allocates what is allocated once
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


@dataclass(slots=True)
class _Static:
    """The buffers of one shape and the replay of its forward."""

    buffers: dict[str, Tensor]
    replay: Replay


class StaticForwards:
    """`capture` is an argument so that padding and buffers can be tested where there is no GPU."""

    def __init__(self, model: Decoder, kv: PagedKV, backend: RowBackend, capture: Capture = capture_cuda_graph):
        self.model, self.kv, self.backend, self.capture = model, kv, backend, capture
        self.num_replays = 0
        self._static: dict[tuple[int, ...], _Static] = {}

    def clear(self) -> None:
        """Forgets the recordings: they read and write the pages' memory where it was."""
        self._static.clear()

    def takes(self, batch: Batch) -> bool:
        """One group of rows that all keep their pages, once the pages exist. Experts are routed on the host."""
        is_plain = self.model.spec.experts is None and self.kv.k.numel() > 0
        return is_plain and len(batch.groups) == 1 and len(batch.token_M) == batch.ids_1N.shape[1] and batch.is_decoding

    def __call__(self, batch: Batch) -> Tensor:
        """Hidden states [N, D]; valid until the next call."""
        (group,) = batch.groups
        assert group.page_RP is not None
        num_tokens, (rows, num_queries), num_pages = batch.ids_1N.shape[1], group.query_RT.shape, group.page_RP.shape[1]
        shape = (_pad(num_tokens, 16), _power(rows), _power(num_queries), _power(num_pages))
        static = self._static.get(shape)
        if static is None:
            buffers = self._buffers(*shape)
            self._fill(buffers, batch, group)
            kv = copy.copy(self.kv)
            kv.space = {}  # copies of pages that no later, larger forward replaces
            static = self._static[shape] = _Static(buffers, self.capture(lambda: self._forward(buffers, kv)))
        self._fill(static.buffers, batch, group)
        self.num_replays += 1
        return static.replay()[:num_tokens]

    def _buffers(self, num_tokens: int, rows: int, num_queries: int, num_pages: int) -> dict[str, Tensor]:
        shapes = {
            "ids": (1, num_tokens), "layout": (4, 1, num_tokens), "slot": (num_tokens,), "order": (num_tokens,),
            "query": (rows, num_queries), "page": (rows, num_pages), "q": (4, rows, num_queries),
            "k": (4, rows, num_pages * self.kv.page_size),
        }  # fmt: skip
        return {name: torch.zeros(shape, dtype=torch.long, device=self.kv.device) for name, shape in shapes.items()}

    def _fill(self, buffers: dict[str, Tensor], batch: Batch, group: RowGroup) -> None:
        """Padding: tokens that are written to the spare page; rows and keys that belong to nothing."""
        for buffer in buffers.values():
            buffer.zero_()
        buffers["slot"].fill_(self.kv.spare_page * self.kv.page_size)
        buffers["page"].fill_(self.kv.spare_page)
        buffers["k"][0].fill_(PAD_DOC)
        num_queries, width = group.query_RT.shape[1], buffers["query"].shape[1]
        values = {
            "ids": batch.ids_1N, "layout": _stack(batch.layout), "slot": batch.slot_M, "page": group.page_RP,
            "query": group.query_RT, "q": _stack(group.q), "k": _stack(group.k),
            "order": batch.order_N // num_queries * width + batch.order_N % num_queries,
        }  # fmt: skip
        for name, value in values.items():
            assert value is not None
            buffers[name][tuple(slice(size) for size in value.shape)] = value

    def _forward(self, buffers: dict[str, Tensor], kv: PagedKV) -> Tensor:
        group = RowGroup(
            buffers["query"], buffers["page"], None, TokenLayout(*buffers["q"].unbind(0)), TokenLayout(*buffers["k"].unbind(0))
        )
        every = torch.arange(buffers["ids"].shape[1], device=kv.device)
        paged = PagedForward(kv, [group], every, buffers["slot"], buffers["order"], self.backend)
        layout = TokenLayout(*buffers["layout"].unbind(0))
        return self.model(buffers["ids"], layout, cache=paged, undoes_shift=False)[0]


def _stack(layout: TokenLayout) -> Tensor:
    return torch.stack((layout.doc_BL, layout.block_BL, layout.copy_BL, layout.position_BL))


def _power(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _pad(size: int, least: int) -> int:
    """At most an eighth more, or up to `least`."""
    step = max(least, _power(size) // 8)
    return -(-size // step) * step

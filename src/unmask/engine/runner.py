"""The one place of the engine that touches tensors: a plan in, what its denoising steps unmasked out.

Shape suffixes: N tokens of the forward, M masked positions, C requests that can run, D model width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unmask.diffusion.denoising import StepResult, StepRows, denoise
from unmask.engine.batch import Batch, build_batch
from unmask.engine.graphs import StaticForwards
from unmask.engine.paged import DenseRows, PagedForward, PagedKV, RowBackend
from unmask.engine.request import Row
from unmask.engine.scheduler import Plan
from unmask.models import Decoder
from unmask.models.flops import Work, model_flops


class Runner:
    """Holds the model, the pages' content and, for families with shifted logits, the hidden state before each window."""

    def __init__(
        self, model: Decoder, num_pages: int, page_size: int, max_sequences: int, backend: RowBackend = DenseRows,
        *, use_cuda_graphs: bool = False,
    ):  # fmt: skip
        self.model, self.backend = model, backend
        self.kv = PagedKV(model.spec, num_pages, page_size, model.device)
        self.static = StaticForwards(model, self.kv, backend) if use_cuda_graphs else None
        self._edge_CD: Tensor | None = None
        self._max_sequences = max_sequences
        self.num_flops = 0  # model FLOPs of all forwards

    def clear(self) -> None:
        """Gives back the pages' memory and what refers to it."""
        self.kv.clear()
        if self.static is not None:
            self.static.clear()

    @torch.inference_mode()
    def forward(self, rows: list[Row]) -> tuple[Tensor, Batch]:
        """Hidden states [N, D] of the rows' tokens, where they are computed (shifts are not undone)."""
        batch = build_batch(rows, self.kv.page_size, self.model.device, in_one_group=self.static is not None)
        if self.static is not None and self.static.takes(batch):
            return self.static(batch), batch
        paged = PagedForward(self.kv, batch.groups, batch.token_M, batch.slot_M, batch.order_N, self.backend)
        return self.model(batch.ids_1N, batch.layout, cache=paged, undoes_shift=False)[0], batch

    @torch.inference_mode()
    def run(self, plan: Plan) -> StepResult | None:
        """One forward. The result covers the plan's denoising rows, in order; None if there are none."""
        self.kv.copy_pages([source for source, _ in plan.copies], [target for _, target in plan.copies])
        hidden_ND, batch = self.forward(plan.rows)
        denoising = [(row, int(first)) for row, first in zip(plan.rows, batch.first_R, strict=True) if row.is_denoising]
        if self.model.spec.shift_logits:
            hidden_ND = self._with_edges(hidden_ND, plan.rows, batch)
        self._count(batch, sum(len(row.request.sequence.masked) for row, _ in denoising))
        if not denoising:
            return None
        rows = StepRows.of([row.request.sequence for row, _ in denoising], self.model.device)
        offset = torch.tensor([first - row.query_start for row, first in denoising]).to(self.model.device, non_blocking=True)
        index_M = rows.position_N + offset[rows.row_N]
        if self.model.spec.shift_logits:
            index_M = self._token_before(index_M, rows, [row for row, _ in denoising], len(batch.layout.doc_BL[0]))
        return denoise(self.model.head, hidden_ND[index_M], rows, self.model.spec)

    def _count(self, batch: Batch, num_scored: int) -> None:
        num_tokens = batch.ids_1N.shape[1]
        work = Work(num_tokens, batch.num_pairs, num_tokens, batch.num_pairs, num_scored)
        self.num_flops += model_flops(self.model.spec, work)

    def _with_edges(self, hidden_ND: Tensor, rows: list[Row], batch: Batch) -> Tensor:
        """Keeps the hidden state of the token before each window for the next steps; appends those that were kept."""
        if self._edge_CD is None or self._edge_CD.dtype != hidden_ND.dtype:
            self._edge_CD = hidden_ND.new_zeros(self._max_sequences, hidden_ND.shape[1])
        known = []
        for row, first in zip(rows, batch.first_R.tolist(), strict=True):
            edge = row.request.sequence.window[0] - 1
            if row.query_start <= edge < row.query_end:
                known.append((row.request.slot, first + edge - row.query_start))
        if known:
            slot_E, index_E = torch.tensor(known, device=hidden_ND.device).T
            self._edge_CD[slot_E] = hidden_ND[index_E]
        return torch.cat((hidden_ND, self._edge_CD))

    def _token_before(self, index_M: Tensor, rows: StepRows, members: list[Row], num_tokens: int) -> Tensor:
        """Where the prediction of each masked position is read: at the token before it; the first of all at itself."""
        facts = torch.tensor([(row.query_start, row.request.slot) for row in members]).to(index_M.device, non_blocking=True)
        start_M, slot_M = facts[rows.row_N].unbind(1)
        before_M = torch.where(rows.position_N > start_M, index_M - 1, num_tokens + slot_M)
        return torch.where(rows.position_N > 0, before_M, index_M)

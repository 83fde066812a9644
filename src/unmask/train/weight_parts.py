"""Copies of a model's weights for a checkpoint: each rank its parts, at once; put together later, by a thread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from unmask.dist import Ranks, is_sharded
from unmask.models.decoder import Backbone
from unmask.train.techniques import reshard


@dataclass(frozen=True, slots=True)
class _Part:
    """own: this rank's rows of a weight of this shape, on the CPU. num_parts: 1 = all of them."""

    own: Tensor
    shape: torch.Size
    num_parts: int


class WeightParts:
    """What is trained of a model, as it is now. Only the ranks of the first copy of the model keep any."""

    def __init__(self, model: Backbone, ranks: Ranks):
        reshard(model)
        self.ranks = ranks
        self._parts: dict[str, _Part] = {}
        for name, parameter in model.named_parameters():
            if model.adapters and not parameter.requires_grad:
                continue
            value, num_parts = parameter.detach(), 1
            if is_sharded(value):
                num_parts = value.device_mesh.size(-1)
                value = value.to_local()
            if ranks.rank < num_parts:  # of the first copy, which the first rank is in
                self._parts[name] = _Part(value.to("cpu", copy=True), parameter.shape, num_parts)

    def together(self, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
        """The whole weights on the first rank, which the others send their parts to; nothing there. All ranks call it."""
        found = {}
        for name, part in self._parts.items():
            if self.ranks.is_first:
                found[name] = self._receive(part, group)
            elif part.own.numel():
                dist.send(part.own.contiguous(), 0, group)
        return found

    def _receive(self, part: _Part, group: dist.ProcessGroup | None) -> Tensor:
        if part.num_parts == 1:
            return part.own
        whole = torch.empty(part.shape, dtype=part.own.dtype)
        for rank, rows in enumerate(whole.chunk(part.num_parts)):  # as FSDP cuts them
            if rank == 0:
                rows.copy_(part.own)
            elif rows.numel():
                dist.recv(rows, rank, group)
        return whole

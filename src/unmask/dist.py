"""The processes that train together, each with a device of its own. The one importer of torch.distributed but for the launcher
(cli/several.py) and the group that weights are sent through (rl/collective.py).

Every rank runs the same loop on the same global batch and knows all its rows; what costs time is shared out: rollouts, and the
packs of rows that are forwarded. What ranks have computed is put together in the order of the ranks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unmask.errors import UnmaskError

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)  # of one collective: the longest that ranks may be apart


class Ranks:
    """This process among `size` ones; alone, everything is what it is without ranks."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=_objects())
        return values

    def of_first(self, value: Value) -> Value:
        """The first rank's value."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, group=_objects())
        return values[0]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors of one dtype by their sums over the ranks."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))


ALONE = Ranks()


def _objects() -> dist.ProcessGroup:
    """The group that Python objects travel in, through the memory of CPUs."""
    global _group
    if _group is None:
        _group = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return _group


_group: dist.ProcessGroup | None = None


def is_one_of_several() -> bool:
    """Whether this process was started as one of several (by torchrun, or `--nproc`)."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_rank() -> int:
    """Which of all processes this one is."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Which of this machine's processes this one is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def joined_ranks(device: torch.device) -> Iterator[Ranks]:
    """All processes of the run, once they have found each other (those that have already stay together). Raises `UnmaskError`
    where they do not."""
    if not is_one_of_several():
        yield ALONE
        return
    if dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    global _group
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UnmaskError(f"the processes of this run do not find each other: {reason}; start them with torchrun") from None
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size())
    finally:
        _group = None
        dist.destroy_process_group()

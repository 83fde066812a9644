"""The processes that train together, each with a device of its own, and tensors that they hold in parts.

Every rank runs the same loop on the same global batch and knows all its rows; what costs time is shared out: rollouts, and the
packs of rows that are forwarded. What ranks have computed is put together in the order of the ranks.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

Value = TypeVar("Value")

TIMEOUT = timedelta(minutes=30)  # of one collective: the longest that ranks may be apart
BUCKET_BYTES = 2**26  # of tensors that are summed together, through a copy; larger ones are summed where they are


class Ranks:
    """This process among `size` ones; alone, everything is what it is without ranks."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size
        self.waited_s = 0.0  # in all exchanges so far, the way of the data included

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, in the order of the ranks."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with self._waiting():
            dist.all_gather_object(values, value, group=_objects())
        return values

    def of_first(self, value: Value) -> Value:
        """The first rank's value."""
        if self.size == 1:
            return value
        values = [value]
        with self._waiting():
            dist.broadcast_object_list(values, src=0, group=_objects())
        return values[0]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors of one dtype by their sums over the ranks, some at a time."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            is_one = len(bucket) == 1 and bucket[0].is_contiguous()
            flat = bucket[0] if is_one else torch.cat([tensor.reshape(-1) for tensor in bucket])
            with self._waiting(flat.device):
                dist.all_reduce(flat)
            if is_one:
                continue
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @property
    def object_group(self) -> dist.ProcessGroup | None:
        """Where ranks talk through the memory of CPUs; None of one that is alone."""
        return _objects() if self.size > 1 else None

    def new_group(self) -> dist.ProcessGroup | None:
        """Another such group, for a thread of its own. All ranks make it together."""
        return dist.new_group(backend="gloo", timeout=TIMEOUT) if self.size > 1 else None

    def mesh(self, shard_size: int, device: torch.device) -> DeviceMesh:
        """One dimension of ranks that hold one copy of a model between them; if there are several copies, another one of
        these before it. Neighbours share a copy: on machines with as many GPUs, its parts travel within a machine. Raises
        `UnmaskError`."""
        from torch.distributed.device_mesh import init_device_mesh

        if shard_size < 1 or self.size % shard_size:
            raise UnmaskError(f"train.shard_size {shard_size} does not divide the {self.size} ranks of this run")
        copies = self.size // shard_size
        sizes, names = ((copies, shard_size), ("replicate", "shard")) if copies > 1 else ((shard_size,), ("shard",))
        return init_device_mesh(device.type, sizes, mesh_dim_names=names)

    @contextmanager
    def _waiting(self, device: torch.device | None = None) -> Iterator[None]:
        """Counts the seconds of an exchange; of one between GPUs, those after this one's own work was done."""
        is_on_gpu = device is not None and device.type == "cuda"
        if is_on_gpu:
            torch.cuda.synchronize(device)
        start = time.monotonic()
        yield
        if is_on_gpu:
            torch.cuda.synchronize(device)
        self.waited_s += time.monotonic() - start


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours that are at most `BUCKET_BYTES` together, or one that is more."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and size + tensor.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


ALONE = Ranks()


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether this rank holds a part of it only: a DTensor (whose package takes a second to import)."""
    return hasattr(tensor, "placements")


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all ranks, which have to ask for it together."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


@torch.no_grad()
def copy_own_part(target: Tensor, values: Tensor) -> None:
    """Of whole values, which all ranks have, the part that this rank holds."""
    if not is_sharded(target):
        target.copy_(values)
        return
    from torch.distributed.tensor import distribute_tensor

    on_device = values.to(device=target.device, dtype=target.dtype)
    target.copy_(distribute_tensor(on_device, target.device_mesh, target.placements, src_data_rank=None))


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


def launcher() -> str:
    """Who started this process (torchrun, or `--nproc`): the same again when that starts it anew, and nobody else. Empty for a
    process that was not started so."""
    run_id = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if not run_id:
        return ""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:  # not on Linux
        started = ""
    return f"{run_id} {socket.gethostname()} {parent} {started}"


def local_rank() -> int:
    """Which of this machine's processes this one is."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def _meeting_place() -> dict[str, Any]:
    """Where ranks that torchrun has started again find each other. Its store is the one of those before, with their addresses
    in it (of several machines, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes a new one: only on one do all count alike)."""
    num_starts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if num_starts == "0" or os.environ.get("GROUP_WORLD_SIZE") != "1":
        return {}
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    return {"store": dist.PrefixStore(f"start {num_starts}", store), "rank": rank, "world_size": size}


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
        where = _meeting_place()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT, **where)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UnmaskError(f"the processes of this run do not find each other: {reason}; start them with torchrun") from None
    yield Ranks(dist.get_rank(), dist.get_world_size())
    # Not after an error: the others are in an exchange then, and this rank would wait for them instead of ending.
    _group = None
    dist.destroy_process_group()

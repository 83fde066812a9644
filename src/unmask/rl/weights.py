"""Weights on their way from the trainer to rollout actors: names and shapes first, then the bytes in chunks of even size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unmask.dist import whole
from unmask.errors import UnmaskError
from unmask.models import Decoder
from unmask.train.techniques import dtypes_of_copy, reshard


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What stands in the stream of bytes, one after the other."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def split_names(model: Decoder) -> tuple[list[str], list[str]]:
    """Tensors that never change in training (of a model with adapters, all others), and those that do."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # A tied head is the embedding, which is sent.
    names = [name for name in model.state_dict() if not (model.spec.is_tied and name == "lm_head.weight")]
    return [name for name in names if name not in trained], [name for name in names if name in trained]


def describe(model: Decoder, names: Iterable[str], precision: str) -> list[TensorInfo]:
    """As actors have them that decode in this precision."""
    state, dtypes = model.state_dict(), dtypes_of_copy(model, precision)
    return [TensorInfo(name, dtypes[name], tuple(state[name].shape)) for name in names]


def whole_tensors(model: Decoder, infos: Iterable[TensorInfo]) -> Iterator[Tensor]:
    """The tensors, put together where ranks hold shards of them: then all ranks have to go through this."""
    reshard(model)
    state = model.state_dict()
    for info in infos:
        yield whole(state[info.name].to(info.dtype)).detach()


def cut(tensors: Iterable[Tensor], chunk_bytes: int) -> Iterator[Tensor]:
    """The bytes of the tensors, one after the other, as uint8 chunks on their device; all but the last have `chunk_bytes`."""
    parts: list[Tensor] = []
    room = chunk_bytes
    for tensor in tensors:
        rest = tensor.contiguous().view(-1).view(torch.uint8)
        while len(rest):
            part, rest = rest[:room], rest[room:]
            parts.append(part)
            room -= len(part)
            if not room:
                yield torch.cat(parts)
                parts, room = [], chunk_bytes
    if parts:
        yield torch.cat(parts)


def chunk_sizes(infos: Sequence[TensorInfo], chunk_bytes: int) -> list[int]:
    """Of the chunks that `cut` makes of such tensors."""
    whole, rest = divmod(sum(info.num_bytes for info in infos), chunk_bytes)
    return [chunk_bytes] * whole + [rest] * bool(rest)


@torch.no_grad()
def fill(model: Decoder, infos: Sequence[TensorInfo], chunks: Iterable[Tensor]) -> None:
    """Copies the bytes into the model's own tensors. Raises `UnmaskError` for a tensor that it has not, or has otherwise."""
    state, source = model.state_dict(), iter(chunks)
    chunk = torch.empty(0, dtype=torch.uint8)
    for info in infos:
        tensor = state.get(info.name)
        if tensor is None or (tensor.dtype, tuple(tensor.shape)) != (info.dtype, info.shape):
            found = "is not there" if tensor is None else f"is {tensor.dtype} {list(tensor.shape)}"
            raise UnmaskError(f"new weights: {info.name!r} is {info.dtype} {list(info.shape)}; the actor's {found}")
        rest = tensor.view(-1).view(torch.uint8)  # the model's own memory: its tensors are contiguous
        while len(rest):
            if not len(chunk):
                chunk = next(source)
            num = min(len(rest), len(chunk))
            rest[:num].copy_(chunk[:num])
            rest, chunk = rest[num:], chunk[num:]

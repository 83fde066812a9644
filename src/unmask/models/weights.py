"""Tensors between a model and the safetensors files of a folder: checked by name and shape, streamed, sharded.

Memory: reading touches a small piece of a file at a time, so a load peaks at one copy of the weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unmask.errors import UnmaskError
from unmask.files import read_json
from unmask.models.spec import ModelFamily, ModelSpec

INDEX = "model.safetensors.index.json"
# What weights may be stored as, and its bytes; anything else is quantised and needs more than a copy.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Pages of a mapped file count as memory of the process until the file is closed; so it is, after this many bytes.
_PIECE_BYTES = 16 * 2**20


class StoredTensor(NamedTuple):
    """A tensor in a file, from the file's header."""

    file: Path
    dtype: str  # "F32", "BF16", ...
    shape: tuple[int, ...]


def checkpoint_tensors(
    model: nn.Module, family: ModelFamily, parameters: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """The model's parameters (a tied one once) under the family's tensor names, as views; stacked experts one by one.

    parameters: by our names, in place of the model's own. Raises `UnmaskError` for a model with adapters in it, which has
    other parameters.
    """
    tensors: dict[str, Tensor] = {}
    for name, parameter in (dict(model.named_parameters()) if parameters is None else parameters).items():
        if ".base_layer." in name or ".lora_" in name:
            raise UnmaskError("the model has adapters in it; take them out first (merge_adapter), or save them (save_adapter)")
        target = family.to_checkpoint_name(name)
        if "{}" in target:
            tensors.update((target.format(i), row) for i, row in enumerate(parameter.detach().unbind()))
        else:
            tensors[target] = parameter.detach()
    return tensors


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """All tensors of a folder's safetensors files by name. Raises `UnmaskError`, also for truncated files."""
    stored: dict[str, StoredTensor] = {}
    index = _read_index(folder)
    files = [_single_file(folder)] if index is None else sorted(set(index.values()))
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.offset_keys():
                    if index is not None and index.get(name) != file:
                        where = f"in {index[name].name}" if name in index else "nowhere"
                        raise UnmaskError(f"{file}: has tensor {name!r}, which is {where} according to {INDEX}")
                    piece = tensors.get_slice(name)
                    stored[name] = StoredTensor(file, piece.get_dtype(), tuple(piece.get_shape()))
        except (SafetensorError, OSError) as error:
            raise UnmaskError(f"{file}: not a complete safetensors file ({error})") from None
    for name, file in (index or {}).items():
        if name not in stored:
            raise UnmaskError(f"{file}: has no tensor {name!r}, which is there according to {INDEX}")
    return stored


def safetensors_names(file: Path) -> set[str]:
    """The names of the tensors in one file. Raises `UnmaskError`, also for a truncated file."""
    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UnmaskError(f"{file}: not a complete safetensors file ({error})") from None


def stored_dtype(stored: dict[str, StoredTensor]) -> torch.dtype:
    """The dtype most weights are stored in; float32 for what is no floating point type."""
    sizes: dict[str, int] = {}
    for tensor in stored.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + math.prod(tensor.shape)
    return _DTYPES.get(max(sizes, key=lambda dtype: sizes[dtype]), torch.float32) if sizes else torch.float32


def _read_index(folder: Path) -> dict[str, Path] | None:
    """Which tensor is in which file, of a sharded folder; None for another. Raises `UnmaskError`."""
    index = folder / INDEX
    if not index.exists() or (folder / "model.safetensors").exists():  # of both, transformers takes the single file, too
        return None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UnmaskError(f"{index}: has no table 'weight_map' from tensor names to file names")
    files = {name: folder / file for name, file in weight_map.items()}
    for file in files.values():
        if file.parent != folder:
            raise UnmaskError(f"{index}: names {file}; shards lie beside their index")
        if not file.exists():
            raise UnmaskError(f"{file}: shard named in {index.name} is missing")
    return files


def _single_file(folder: Path) -> Path:
    if (folder / "model.safetensors").exists():
        return folder / "model.safetensors"
    if pickles := find_pickles(folder):
        raise UnmaskError(
            f"{folder}: offers its weights only as pickles ({pickles[0]}), which can run code when they are read; only "
            "safetensors are read: convert them first"
        )
    raise UnmaskError(f"{folder}: no model.safetensors here (only safetensors are read, never pickles)")


def find_pickles(folder: Path) -> list[str]:
    """Names of files that look like pickled weights."""
    return sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(pattern))


def check_tensors(
    stored: dict[str, StoredTensor], model: nn.Module, family: ModelFamily, spec: ModelSpec, folder: Path,
    parameters: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Raises `UnmaskError` naming tensors that are missing, unexpected or mis-shaped for this model.

    A tied head that is stored all the same may be there; a value model may come from a policy (no head yet) or be read
    beside a policy's head.
    """
    wanted = checkpoint_tensors(model, family, parameters)
    head, value_head = family.to_checkpoint_name("lm_head.weight"), family.to_checkpoint_name("value_head.weight")
    may_be_extra = {head} if spec.is_tied else set()
    if value_head in wanted:
        may_be_extra = {head, family.to_checkpoint_name("lm_head.bias")}
    problems: dict[str, list[str]] = {
        "missing": [],
        "unexpected": [],
        "mis-shaped": [],
        "not stored as floating point numbers": [],
    }
    for name, target in wanted.items():
        if name not in stored:
            if name != value_head:
                problems["missing"].append(f"{name!r} {list(target.shape)}")
        elif stored[name].shape != tuple(target.shape):
            problems["mis-shaped"].append(f"{name!r} has shape {list(stored[name].shape)}, expected {list(target.shape)}")
    for name, found in stored.items():
        if name not in wanted and name not in may_be_extra:
            problems["unexpected"].append(f"{name!r} {list(found.shape)}")
        elif found.dtype not in _FLOATS:
            problems["not stored as floating point numbers"].append(f"{name!r} {found.dtype}")
    lines = [f"{len(found)} {kind} ({_first(found)})" for kind, found in problems.items() if found]
    if lines:
        hint = '; it is a value model: load it with head="value"' if value_head in stored and value_head not in wanted else ""
        raise UnmaskError(f"{folder}: tensors do not fit family {family.name}: {'; '.join(lines)}{hint}")


def _first(texts: list[str], num: int = 3) -> str:
    return ", ".join(texts[:num]) + (", ..." if len(texts) > num else "")


def read_tensors(stored: dict[str, StoredTensor], into: dict[str, Tensor]) -> None:
    """Copies stored tensors into those given under the same names, converting dtype and device piece by piece."""
    for name, rows, piece in _pieces(stored, [name for name in stored if name in into]):
        into[name][rows].copy_(piece)


def is_equal(stored: dict[str, StoredTensor], name: str, tensor: Tensor) -> bool:
    """Whether a stored tensor, in this one's dtype, has its values."""
    if stored[name].shape != tuple(tensor.shape):
        return False
    return all(torch.equal(tensor[rows], piece.to(tensor)) for _, rows, piece in _pieces(stored, [name]))


def _pieces(stored: dict[str, StoredTensor], names: Iterable[str]) -> Iterator[tuple[str, slice, Tensor]]:
    """Whole tensors, large ones a few rows at a time. A piece is valid until the next one is asked for."""
    tensors: Any = None
    file, num_bytes = None, 0
    with ExitStack() as stack:
        for name in names:
            shape, width = stored[name].shape, _FLOATS[stored[name].dtype]
            row_bytes = max(1, math.prod(shape[1:]) * width)
            step = max(1, _PIECE_BYTES // row_bytes)
            for start in range(0, shape[0], step):
                try:
                    if file != stored[name].file or num_bytes >= _PIECE_BYTES:
                        stack.close()
                        file, num_bytes = stored[name].file, 0
                        tensors = stack.enter_context(safe_open(file, framework="pt"))
                    rows = slice(start, min(start + step, shape[0]))
                    piece = tensors.get_slice(name)[rows]
                except (SafetensorError, OSError) as error:
                    raise UnmaskError(f"{file}: cannot be read ({error})") from None
                yield name, rows, piece
                num_bytes += piece.numel() * width


def write_tensors(tensors: dict[str, Tensor], folder: Path, max_shard_bytes: int) -> None:
    """Writes model.safetensors, or shards and their index when there is more than `max_shard_bytes`.

    One shard at a time is brought to the CPU.
    """
    from huggingface_hub import split_state_dict_into_shards_factory

    plan = split_state_dict_into_shards_factory(
        tensors, get_storage_size=lambda t: t.numel() * t.element_size(), get_storage_id=lambda t: None,
        filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_bytes,
    )  # fmt: skip
    for file, names in plan.filename_to_tensors.items():
        shard = {name: tensors[name].to("cpu").contiguous() for name in names}
        save_file(shard, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": dict(sorted(plan.tensor_to_filename.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

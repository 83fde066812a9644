"""Model folders in the hub's format, without remote code: load, save, make from a preset.

config.json                     the family and its sizes; unknown keys are preserved
model.safetensors               or shards with model.safetensors.index.json
tokenizer.json, ...             carried along
"""

from __future__ import annotations

import difflib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor

from unmask.dist import copy_own_part, is_sharded
from unmask.errors import UnmaskError
from unmask.files import check_replaceable, new_folder, read_json
from unmask.models import find_family, lora, preset_config
from unmask.models.decoder import Backbone, Decoder, ValueModel
from unmask.models.hub import carry_files, is_model_file, resolve_folder
from unmask.models.spec import ModelFamily, ModelSpec
from unmask.models.special_ids import fill_special_ids
from unmask.models.weights import (
    StoredTensor,
    check_tensors,
    checkpoint_tensors,
    is_equal,
    read_headers,
    read_tensors,
    stored_dtype,
    write_tensors,
)  # fmt: skip

MAX_SHARD_BYTES = 5 * 10**9
Device = str | torch.device
DType = str | torch.dtype
Model = TypeVar("Model", bound=Backbone)
_HEADS: dict[str, type[Backbone]] = {"vocabulary": Decoder, "value": ValueModel}


def read_spec(folder: Path) -> tuple[dict[str, Any], ModelFamily, ModelSpec]:
    """The config of a model folder as it is, its family, and what follows from them. Raises `UnmaskError`."""
    file = folder / "config.json"
    config = read_json(file)
    try:
        family = find_family(config, str(file))
    except UnmaskError as error:
        if "auto_map" not in config:
            raise
        raise UnmaskError(f"{error}; this model comes with code of its own (auto_map), which is never run") from None
    filled = fill_special_ids(config, folder, family)
    try:
        return config, family, family.spec(filled)
    except UnmaskError as error:
        raise UnmaskError(str(error).replace("config.json", str(file), 1)) from None


@overload
def load_model(
    path_or_hub_name: str | Path, device: Device = ..., dtype: DType = ..., revision: str | None = ...,
    head: Literal["vocabulary"] = ...,
) -> Decoder: ...  # fmt: skip


@overload
def load_model(
    path_or_hub_name: str | Path, device: Device = ..., dtype: DType = ..., revision: str | None = ...,
    *, head: Literal["value"],
) -> ValueModel: ...  # fmt: skip


def load_model(
    path_or_hub_name: str | Path,
    device: Device = "cpu",
    dtype: DType = "float32",
    revision: str | None = None,
    head: Literal["vocabulary", "value"] = "vocabulary",
) -> Decoder | ValueModel:
    """Loads a model folder or hub name into the one decoder, in evaluation mode.

    Only JSON and safetensors are read. All names and shapes are checked before any weight is read; tensors are then
    copied piece by piece, so that memory peaks at about one copy of the weights.

    dtype: a torch dtype or its name, or "auto": the one most weights are stored in.
    revision: a branch, tag or commit on the hub.
    head: "value" gives a `ValueModel`; its scalar head is zero when the folder holds a policy.

    Of a folder with adapters alone (LoRA), their model is loaded and they are merged into it, in float32.

    Raises `UnmaskError` naming missing, unexpected or mis-shaped tensors (with both shapes), truncated files, unknown
    families, and folders with pickles or remote code only.
    """
    if head not in _HEADS:
        raise UnmaskError(f"head {head!r} is unknown; known: {', '.join(_HEADS)}")
    folder = resolve_folder(path_or_hub_name, revision)
    if lora.is_adapter(folder):
        return _load_merged(folder, device, dtype, head)  # type: ignore[return-value]
    config, family, spec = read_spec(folder)
    known_dtype = None if dtype == "auto" else find_dtype(dtype)
    stored = read_headers(folder)
    with torch.device("meta"):
        model = _HEADS[head](spec)
    check_tensors(stored, model, family, spec, folder)

    model = allocate(model, device, known_dtype or stored_dtype(stored))
    model.config, model.source_folder = config, folder.resolve()
    _fill(model, family, stored, folder)
    return model.eval()  # type: ignore[return-value]


def _load_merged(folder: Path, device: Device, dtype: DType, head: Literal["vocabulary", "value"]) -> Backbone:
    """The model of a folder's adapters, with these in its weights."""
    base: Backbone = load_model(lora.base_of(folder), device, head=head)
    model = lora.merge_adapter(lora.load_adapter(base, folder)).requires_grad_(True)
    model.source_folder = folder.resolve()
    return model.to(stored_dtype(read_headers(weights_folder(folder))) if dtype == "auto" else find_dtype(dtype)).eval()


def weights_folder(folder: Path) -> Path:
    """Where the weights are: of adapters, those of their model. Raises `UnmaskError`."""
    while lora.is_adapter(folder):
        folder = resolve_folder(lora.base_of(folder))
    return folder


def load_weights(model: Backbone, folder: Path) -> None:
    """Reads a folder's tensors into a model of the same family and sizes, in place. Raises `UnmaskError`.

    Of a model with adapters, these are read.
    """
    if model.adapters:
        lora.restore_adapter(model.adapters[0], folder)
        return
    family, stored = find_family(model.config), read_headers(folder)
    parameters = dict(model.named_parameters())
    has_parts = any(map(is_sharded, parameters.values()))
    read = {n: torch.empty(p.shape, dtype=p.dtype) for n, p in parameters.items()} if has_parts else parameters
    check_tensors(stored, model, family, model.spec, folder, read)
    _fill(model, family, stored, folder, read)
    if has_parts:
        for name, parameter in parameters.items():
            copy_own_part(parameter, read.pop(name))


def _fill(
    model: Backbone, family: ModelFamily, stored: dict[str, StoredTensor], folder: Path,
    parameters: Mapping[str, Tensor] | None = None,
) -> None:  # fmt: skip
    """Copies tensors that are known to fit into the model's, or those given in their place. Raises `UnmaskError` for a tied
    head that is not the embedding."""
    wanted = checkpoint_tensors(model, family, parameters)
    with torch.no_grad():
        read_tensors(stored, wanted)
        value_head = family.to_checkpoint_name("value_head.weight")
        if value_head in wanted and value_head not in stored:
            wanted[value_head].zero_()
    head, embedding = (family.to_checkpoint_name(f"{name}.weight") for name in ("lm_head", "embed_tokens"))
    model.stores_tied_head = isinstance(model, Decoder) and model.spec.is_tied and head in stored
    if model.stores_tied_head and model.device.type != "meta" and not is_equal(stored, head, wanted[embedding]):
        raise UnmaskError(f"{folder}: the config ties the head to the embedding, but the tensors {head} and {embedding} differ")


def allocate(model: Model, device: Device, dtype: torch.dtype) -> Model:
    """A model on the "meta" device gets memory (not yet numbers). Raises `UnmaskError` when the device has none."""
    try:
        model = model.to(dtype=dtype).to_empty(device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # no such device, or not enough memory
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnmaskError(f"device {str(device)!r} cannot hold the model: {reason}") from None
    model.tie_weights()
    return model


def find_dtype(dtype: DType) -> torch.dtype:
    """A floating point type by its name. Raises `UnmaskError`."""
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        raise UnmaskError(f"dtype {dtype!r} is not a floating point type; use float32, bfloat16, float16 or float64")
    return found


def new_model(
    preset: str, seed: int, *, device: Device = "cpu", dtype: DType = "float32", **overrides: Any
) -> Decoder:  # fmt: skip
    """A randomly initialised model: preset "family/size" with config keys overridden (vocab_size, special ids, ...).

    A seed means the same float32 numbers on every device; other dtypes round them. Raises `UnmaskError`.
    """
    return new_model_from(preset, seed, overrides, device=device, dtype=dtype)


def new_model_from(
    preset: str, seed: int, overrides: Mapping[str, Any], *, device: Device = "cpu", dtype: DType = "float32"
) -> Decoder:
    """`new_model` with the overrides as a table."""
    target_dtype = find_dtype(dtype)
    config = preset_config(preset)
    if unknown := sorted(set(overrides) - set(config)):
        near = difflib.get_close_matches(unknown[0], config, n=1, cutoff=0.0)[0]
        raise UnmaskError(f"preset {preset}: unknown config key {unknown[0]!r}; the nearest known key is {near!r}")
    config |= overrides
    with torch.device("meta"):
        model = Decoder(find_family(config).spec(config))
    allocate(model, device, target_dtype)
    model.config = config
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.eval()


def write_weights(
    model: Backbone, folder: Path, max_shard_bytes: int = MAX_SHARD_BYTES, parameters: Mapping[str, Tensor] | None = None,
    config: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Writes config.json and the tensors, under the family's names, into an existing folder.

    parameters (by our names), config: in place of the model's own, which may be others by now.
    """
    config = dict(model.config if config is None else config)
    family = find_family(config)
    for key in {"dtype", "torch_dtype"} & set(config):  # tools that read the weights as the config says must not round them
        if str(config[key]).removeprefix("torch.") != (name := str(model.dtype).removeprefix("torch.")):
            config[key] = name
    tensors = checkpoint_tensors(model, family, parameters)
    if model.stores_tied_head:
        embedding = tensors[family.to_checkpoint_name("embed_tokens.weight")]
        tensors[family.to_checkpoint_name("lm_head.weight")] = embedding.clone()
    write_tensors(tensors, folder, max_shard_bytes)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_adapters(
    model: Backbone, folder: Path, parameters: Mapping[str, Tensor] | None = None, config: Mapping[str, Any] | None = None
) -> None:
    """Writes config.json and the adapters of a model that has some, and nothing else of it, into an existing folder.

    parameters, config: as in `write_weights`.
    """
    lora.write_adapter(model.adapters[0], folder, parameters)
    config = model.config if config is None else config
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_target(path: str | Path) -> None:
    """Raises `UnmaskError` if a model cannot be saved at `path`, because something else is there."""
    check_replaceable(Path(path))
    file = Path(path) / "config.json"
    if file.exists() and not read_json(file).keys() & {"model_type", "architectures"}:
        raise UnmaskError(f"{file}: is not the config of a model; the folder is not written to, choose another name")


def save_model(
    model: Backbone, path: str | Path, tokenizer_from: str | Path | None = None, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Saves an ordinary model folder, atomically: an old one at `path` is intact until the new one is complete.

    Tensor names and config keys are those of the checkpoint the model came from. Tokenizer files (and the others that
    other tools may need) come along from there, or from the folder `tokenizer_from`. Weights above `max_shard_bytes` are
    split into shards. Files in an old folder at `path` that are no part of a model stay. Raises `UnmaskError`.
    """
    source = model.source_folder if tokenizer_from is None else Path(tokenizer_from)
    check_target(path)
    with new_folder(Path(path), replaces=is_model_file) as folder:
        write_weights(model, folder, max_shard_bytes)
        if source is not None and source.is_dir():
            carry_files(source, folder)
        elif source is not None:
            warnings.warn(f"{source} is gone: {path} gets no tokenizer files", stacklevel=2)

"""Model folders in the hub's format: config.json, model.safetensors (or shards), tokenizer files. No remote code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from unmask.errors import UnmaskError
from unmask.files import new_folder, read_json
from unmask.models import find_family, preset_config
from unmask.models.decoder import Decoder

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def resolve_folder(path_or_hub_name: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is; "owner/name" through the hub's cache. Raises `UnmaskError` saying what was looked for."""
    folder = Path(path_or_hub_name)
    if folder.is_dir():
        return folder
    name = str(path_or_hub_name)
    if folder.exists():
        raise UnmaskError(f"{name}: is a file; a model is a folder with config.json and model.safetensors")
    is_hub_name = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not folder.parent.is_dir()
    if not is_hub_name:
        raise UnmaskError(f"{name}: no such folder (and not a hub name of the form owner/name)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except Exception as error:  # hub clients raise many kinds; all mean "could not be had"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnmaskError(f"{name}: no such local folder, and the hub did not deliver it: {reason}") from None


def load_model(
    path_or_hub_name: str | Path, device: str | torch.device = "cpu", dtype: str | torch.dtype = "float32",
    revision: str | None = None,
) -> Decoder:  # fmt: skip
    """Loads a checkpoint folder or hub name into the one decoder, in evaluation mode.

    Only JSON and safetensors are read; tensors are copied one by one. Raises `UnmaskError` naming missing, unexpected
    or mis-shaped tensors and truncated files.
    """
    folder = resolve_folder(path_or_hub_name, revision)
    config = read_json(folder / "config.json")
    family = find_family(config, str(folder / "config.json"))
    target_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(target_dtype, torch.dtype) or not target_dtype.is_floating_point:
        raise UnmaskError(f"dtype {dtype!r} is not a floating point type; use float32, bfloat16 or float16")
    with torch.device("meta"):
        model = Decoder(family.spec(config))
    model = model.to(dtype=target_dtype).to_empty(device=device)
    model.tie_weights()
    model.config = config

    wanted: dict[str, torch.Tensor] = {family.to_checkpoint_name(name): p for name, p in model.named_parameters()}
    if model.spec.is_tied:
        # Some tools store a tied head all the same; it is redundant.
        wanted[family.to_checkpoint_name("lm_head.weight")] = model.embed_tokens.weight
    found: set[str] = set()
    for file in _weight_files(folder):
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a dict)
                    if name not in wanted:
                        raise UnmaskError(f"{file}: unexpected tensor {name!r} for family {family.name}")
                    shape = tuple(tensors.get_slice(name).get_shape())
                    if shape != tuple(wanted[name].shape):
                        expected = list(wanted[name].shape)
                        raise UnmaskError(f"{file}: tensor {name!r} has shape {list(shape)}, expected {expected}")
                    with torch.no_grad():
                        wanted[name].copy_(tensors.get_tensor(name))
                    found.add(name)
        except (SafetensorError, OSError) as error:
            raise UnmaskError(f"{file}: not a complete safetensors file ({error})") from None
    optional = {family.to_checkpoint_name("lm_head.weight")} if model.spec.is_tied else set()
    if missing := sorted(set(wanted) - found - optional):
        raise UnmaskError(f"{folder}: tensor {missing[0]!r} is missing ({len(missing)} missing in all)")
    return model.eval()


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        files = sorted({folder / name for name in read_json(index).get("weight_map", {}).values()})
        if absent := [f for f in files if not f.exists()]:
            raise UnmaskError(f"{absent[0]}: shard named in {index.name} is missing")
        return files
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    raise UnmaskError(f"{folder}: no model.safetensors here (only safetensors are read, never pickles)")


def new_model(preset: str, seed: int, *, device: str | torch.device = "cpu", **overrides: Any) -> Decoder:
    """A randomly initialised model: preset "family/size" with config keys overridden (vocab_size, special ids, ...)."""
    config = {**preset_config(preset), **overrides}
    model = Decoder(find_family(config).spec(config))
    model.config = config
    model.init_weights(torch.Generator().manual_seed(seed))
    return model.to(device).eval()


def write_weights(model: Decoder, folder: Path) -> None:
    """Writes config.json and model.safetensors, under the family's tensor names, into an existing folder."""
    family = find_family(model.config)
    tensors = {family.to_checkpoint_name(name): p.detach().to("cpu").contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(model.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def save_model(model: Decoder, path: str | Path, tokenizer_from: str | Path | None = None) -> None:
    """Saves an ordinary model folder, atomically; `tokenizer_from` is a folder whose tokenizer files come along."""
    with new_folder(Path(path)) as folder:
        write_weights(model, folder)
        if tokenizer_from is not None:
            copy_tokenizer(Path(tokenizer_from), folder)


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)

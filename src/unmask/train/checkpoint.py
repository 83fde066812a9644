"""Checkpoints of a run: a loadable model folder plus everything needed to go on exactly where it stood.

    checkpoints/step-00000040/
        config.json, model.safetensors, tokenizer files    an ordinary model folder (large weights: several shards), or
        config.json, adapter_*, tokenizer files            the adapters of a run that trains those
        value_model/config.json, model.safetensors         of a run that trains one
        trainer_state.pt                                   optimizers, steps, RNG states, position in the metrics
        manifest.json                                      written last: sizes and SHA-256 of all of it, itself included

A checkpoint is written to a temporary folder and renamed: it is whole or absent.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.errors import UnmaskError
from unmask.files import new_folder, read_json, sha256
from unmask.models.checkpoint import load_weights, write_adapters, write_weights
from unmask.models.decoder import Backbone
from unmask.models.hub import carry_files

MANIFEST = "manifest.json"
REQUIRED = ("config.json", "trainer_state.pt")


def seed_rng(seed: int) -> None:
    """Seeds the global generators, so that users' functions that draw from them repeat too."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """States of the global generators. Our own random numbers are counter-based; these are for users' functions."""
    version, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (version, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    version, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(
    folder: Path, step: int, models: Mapping[str, Backbone], state: dict[str, Any], tokenizer_from: Path, keep_last: int,
    best_step: int | None = None,
) -> Path:  # fmt: skip
    """Writes checkpoints/step-N atomically, then removes all but the newest `keep_last` and that of `best_step`.

    models: by the folder within the checkpoint, "" for the checkpoint itself. Raises `UnmaskError`.
    """
    target = folder / step_folder(step)
    with new_folder(target, marker=MANIFEST) as temporary:
        for name, model in models.items():
            (temporary / name).mkdir(exist_ok=True)
            (write_adapters if model.adapters else write_weights)(model, temporary / name)
        carry_files(tokenizer_from, temporary)
        torch.save(state, temporary / "trainer_state.pt")
        files = {
            file.relative_to(temporary).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
            for file in temporary.rglob("*")
            if file.is_file()
        }
        (temporary / MANIFEST).write_text(_manifest(step, dict(sorted(files.items()))), encoding="utf-8")
    for old in list_checkpoints(folder)[:-keep_last]:
        if best_step is None or old.name != step_folder(best_step):
            shutil.rmtree(old, ignore_errors=True)
    return target


def step_folder(step: int) -> str:
    return f"step-{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete-looking checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / MANIFEST).exists())


def newest_valid(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files match its manifest, and a line for each newer one that does not."""
    skipped = [f"{path}: skipped, it has no {MANIFEST}" for path in folder.glob("step-*") if not (path / MANIFEST).exists()]
    for path in reversed(list_checkpoints(folder)):
        if problem := find_damage(path):
            skipped.append(f"{path}: skipped, {problem}")
        else:
            return path, skipped
    return None, skipped


def _manifest(step: int, files: dict[str, Any]) -> str:
    """The text of a manifest, with a checksum of its own: there is no byte that may be another one."""
    content = {"step": step, "files": files}
    return json.dumps({**content, "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest()}, indent=2)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = read_json(path / MANIFEST)
        files = manifest["files"]
        if (path / MANIFEST).read_bytes() != _manifest(manifest["step"], files).encode():
            return "its manifest is damaged, or of an older version (its own checksum does not match)"
        if missing := [name for name in REQUIRED if name not in files]:
            return f"its manifest does not list {missing[0]}"
        if not any(name.endswith(".safetensors") for name in files):
            return "its manifest lists no weights"
        for name, facts in files.items():
            file = path / name
            if not file.exists():
                return f"{name} is missing"
            if file.stat().st_size != facts["bytes"]:
                return f"{name} has {file.stat().st_size} bytes, the manifest says {facts['bytes']}"
            if sha256(file) != facts["sha256"]:
                return f"the checksum of {name} does not match"
    except (UnmaskError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest is damaged ({error})"
    return None


def load_checkpoint(path: Path, models: Mapping[str, Backbone], rank: int = 0) -> dict[str, Any]:
    """Restores weights in place and the rank's global generators, if it had any; returns the saved state."""
    for name, model in models.items():
        load_weights(model, path / name)
    state = torch.load(path / "trainer_state.pt", map_location="cpu", weights_only=True)
    if rank < len(state["rng"]):
        set_rng_state(state["rng"][rank])
    return state

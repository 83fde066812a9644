"""Checkpoints of a run: a loadable model folder plus everything needed to go on exactly where it stood.

    checkpoints/step-00000040/
        config.json, model.safetensors, tokenizer files    an ordinary model folder (large weights: several shards), or
        config.json, adapter_*, tokenizer files            the adapters of a run that trains those
        value_model/config.json, model.safetensors         of a run that trains one
        optimizer/                                         what the optimizers keep of each weight, in parts (torch DCP)
        trainer_state.pt                                   steps, RNG states, position in the metrics
        manifest.json                                      written last: sizes and SHA-256 of all of it, itself included

A checkpoint is written to a temporary folder and renamed: it is whole or absent. See train/saving.py for how.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unmask.dist import Ranks
from unmask.errors import UnmaskError
from unmask.files import read_json, sha256
from unmask.models.checkpoint import load_weights
from unmask.train.optimizer_files import load_optimizer_tensors
from unmask.train.trainer import Trainer

MANIFEST, STATE, OPTIMIZER = "manifest.json", "trainer_state.pt", "optimizer"
REQUIRED = ("config.json", STATE)


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
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    version, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((version, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


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


def manifest_text(step: int, files: dict[str, Any]) -> str:
    """The text of a manifest, with a checksum of its own: there is no byte that may be another one."""
    content = {"step": step, "files": files}
    return json.dumps({**content, "sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest()}, indent=2)


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = read_json(path / MANIFEST)
        files = manifest["files"]
        if (path / MANIFEST).read_bytes() != manifest_text(manifest["step"], files).encode():
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


def load_checkpoint(path: Path, trainers: Mapping[str, Trainer], ranks: Ranks) -> dict[str, Any]:
    """Restores weights and optimizers in place, whatever ranks they were written by, and the rank's global generators, if it
    had any; returns the saved state. trainers: by the folder of their model, "" for the checkpoint itself. Raises
    `UnmaskError`."""
    state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    for name, trainer in trainers.items():
        load_weights(trainer.model, path / name)
        trainer.load_state_dict(state["trainers"][name])
    if (path / OPTIMIZER).is_dir():
        load_optimizer_tensors(path / OPTIMIZER, {name: (t.model, t.optimizer) for name, t in trainers.items()}, ranks)
    if ranks.rank < len(state["rng"]):
        set_rng_state(state["rng"][ranks.rank])
    return state

"""The folder of a run: locked, created, found to belong to a recipe, and what the run is computed with."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import sys
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from unmask.config import RlRecipe, SftRecipe, to_toml
from unmask.errors import UnmaskError
from unmask.files import describe_os_error, write_text

# Keys that may change between a run and its resumption: where and how safely it runs, and how long it goes on. (A longer
# train.max_steps stretches a learning rate schedule from here on; everything else of a step stays what it was.)
_MAY_CHANGE = (
    "run.dir", "run.num_threads", "engine.", "train.max_steps", "train.max_hours", "train.use_activation_checkpointing",
    "train.max_tokens_per_micro_batch", "train.max_nonfinite_updates", "train.shard_size", "train.use_compile",
    "train.profile_steps", "fleet.num_", "fleet.address", "fleet.responses_per_task", "fleet.weight_transfer",
    "fleet.chunk_mb", "fleet.timeout_s", "reward.options.num_workers", "stop.", "checkpoint.", "log.",
)  # fmt: skip

LOCK = ".lock"
PACKS = "max-tokens.json"  # see memory.py
BEST = "best"  # link to the best checkpoint, of a run that keeps one
_WRITTEN_AT_START = (
    "base", "logs", "recipe.toml", "versions.json", "origins.json", ".launchers.json", "metrics.jsonl", "timings.jsonl", PACKS
)  # fmt: skip


def lock_folder(folder: Path, resume: bool) -> int:
    """Keeps a second process out of the folder for as long as this one lives; returns the lock's file descriptor."""
    if resume and not folder.is_dir():
        raise UnmaskError(f"{folder}: nothing to resume here (no such folder)")
    if not resume and folder.is_dir() and not _is_blank(folder):
        raise UnmaskError(f"{folder}: is not empty; continue that run with --resume or choose another run.dir")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise describe_os_error(error, folder) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise UnmaskError(
            f"{folder}: another process is running in this folder; wait for it or choose another run.dir"
        ) from None
    return descriptor


def _is_blank(folder: Path) -> bool:
    """Nothing is lost by starting here: nothing but leftovers, or a run that ended before it recorded or kept anything."""
    paths = [path for path in folder.iterdir() if not _is_leftover(path)]
    if any(path.name not in _WRITTEN_AT_START for path in paths):
        return False
    return all(path.stat().st_size == 0 for path in paths if path.suffix == ".jsonl")


def _is_leftover(path: Path) -> bool:
    """The lock, or something that was being written when a process died."""
    return path.name == LOCK or (path.name.startswith(".") and ".tmp-" in path.name)


def prepare_folder(folder: Path, recipe: SftRecipe | RlRecipe, resume: bool) -> None:
    """Creates the folder with the resolved recipe, or checks that the one there belongs to it. Raises `UnmaskError`."""
    file = folder / "recipe.toml"
    places = folder, folder / "checkpoints", folder / "profiles"
    for leftover in (path for place in places for path in place.glob(".*.tmp-*")):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
    if not resume:
        (folder / PACKS).unlink(missing_ok=True)
    if resume and not file.exists():
        raise UnmaskError(f"{folder}: nothing to resume here (no recipe.toml)")
    if resume:
        try:
            stored = _flatten(tomllib.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise UnmaskError(f"{file}: cannot be read ({error})") from None
        given = _flatten(tomllib.loads(to_toml(recipe)))
        for key in sorted(stored.keys() | given.keys()):
            if stored.get(key) != given.get(key) and not key.startswith(_MAY_CHANGE):
                was, now = stored.get(key), given.get(key)
                raise UnmaskError(f"{file}: cannot resume, {key} was {was!r} and is now {now!r}; use another run.dir")
    write_text(file, to_toml(recipe))
    write_text(folder / "versions.json", json.dumps(versions(), indent=2) + "\n")


def versions() -> dict[str, Any]:
    """What the run was computed with; packages that are not installed are left out."""
    packages = {}
    for name in (
        "unmask", "torch", "numpy", "safetensors", "transformers", "tokenizers", "pydantic", "math-verify", "sympy",
        "latex2sympy2_extended", "ray",
    ):  # fmt: skip
        with suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": packages,
        "num_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(_flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value})
    return flat

"""What a run computes on and where its models are."""

from __future__ import annotations

from pathlib import Path

import torch

from unmask.config.sections import MachineConfig
from unmask.dist import local_rank
from unmask.errors import UnmaskError
from unmask.models.hub import resolve_folder
from unmask.train.checkpoint import newest_valid


def pick_device(name: str) -> torch.device:
    """The device of that name; for "cuda" this process's GPU (the first, if it is alone), for "auto" that or the CPU. Raises
    `UnmaskError` when it is not there."""
    if name == "auto":
        return torch.device("cuda", local_rank()) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device("cuda", local_rank()) if name == "cuda" else torch.device(name)
        torch.empty(1, device=device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not a CPU or CUDA device")
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise UnmaskError(f"device {name!r} cannot be used: {reason}; use cpu, or auto") from None
    return device


def use_machine(config: MachineConfig) -> torch.device:
    """Applies the process-wide settings and returns the device. Raises `UnmaskError`."""
    if config.num_threads:
        torch.set_num_threads(config.num_threads)
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def pick_precision(name: str, device: torch.device) -> str:
    if name != "auto":
        return name
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"


def find_model_folder(path: str, revision: str = "", *, weights: bool = True) -> Path:
    """A model folder or hub name; for a run folder, its newest valid checkpoint. Raises `UnmaskError`.

    weights: False fetches only the JSON files of a hub name.
    """
    if (Path(path) / "checkpoints").is_dir():
        checkpoint, _ = newest_valid(Path(path) / "checkpoints")
        if checkpoint is None:
            raise UnmaskError(f"{path}: this run has no valid checkpoint yet")
        return checkpoint
    return resolve_folder(path, revision or None, weights=weights)

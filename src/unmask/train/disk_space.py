"""Whether a checkpoint fits the disk, found before any of it is written."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from unmask.errors import UnmaskError
from unmask.files import describe_os_error
from unmask.models.hub import carried_files
from unmask.train.trainer import Trainer

# Beyond the tensors: headers, the loop's state, manifests; and records of the steps until the next checkpoint.
_SLACK_BYTES = 2**20
_SLACK_SHARE = 0.01


def check_space(checkpoint: Path, trainers: Iterable[Trainer[Any]], tokenizer_from: Path) -> None:
    """Raises `UnmaskError` if the disk has less room than a checkpoint of these needs, beside those that are there."""
    folder = checkpoint.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        num_free = shutil.disk_usage(folder).free
    except OSError as error:
        raise describe_os_error(error, folder) from error
    num_needed = estimate_bytes(trainers, tokenizer_from)
    if num_free < num_needed:
        raise UnmaskError(
            f"{checkpoint}: the disk is full: a checkpoint needs {num_needed / 1e9:.3f} GB, free are {num_free / 1e9:.3f} GB; "
            "nothing was written, and older checkpoints are intact; free space and go on with --resume"
        )


def estimate_bytes(trainers: Iterable[Trainer[Any]], tokenizer_from: Path) -> int:
    """What a checkpoint takes, a little more rather than less. Tensors that ranks share are counted whole."""
    tensors: list[Tensor] = []
    for trainer in trainers:
        model = trainer.model
        tensors += [p for p in model.parameters() if p.requires_grad] if model.adapters else list(model.parameters())
        tensors += [model.embed_tokens.weight] if model.stores_tied_head else []
        tensors += [
            value for state in trainer.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
        ]
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    num_bytes += sum(file.stat().st_size for file in carried_files(tokenizer_from))
    return int(num_bytes * (1 + _SLACK_SHARE)) + _SLACK_BYTES

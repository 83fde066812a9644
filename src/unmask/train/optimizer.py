"""AdamW, its learning rate as a pure function of the step, and what it keeps of each weight."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unmask.config.training import OptimizerConfig
from unmask.dist import Ranks
from unmask.errors import UnmaskError


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices, not on norms and biases."""
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, fused=True)


def learning_rate(config: OptimizerConfig, step: int, max_steps: int) -> float:
    """The rate of step 0, 1, ..: linear warm-up over warmup_steps, then the schedule, ending at final_lr_ratio * lr."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
    progress = min(1.0, progress)
    share = 1 - progress if config.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return config.lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * share)


# What DCP says of a process that is alone, each time.
warnings.filterwarnings("ignore", message="torch.distributed is disabled")

Optimized = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]  # by names of ours


def optimizer_tensors(optimized: Optimized) -> dict[str, Tensor]:
    """What the optimizers keep of each parameter so far, by "name/parameter/key"."""
    return {
        f"{name}/{parameter_name}/{key}": tensor
        for name, (model, optimizer) in optimized.items()
        for parameter_name, parameter in model.named_parameters()
        for key, tensor in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(folder: Path, optimized: Optimized, ranks: Ranks) -> None:
    """Reads what was written of `optimizer_tensors`, by whatever ranks: of sharded weights each rank gets its part. Raises
    `UnmaskError` for tensors that have no place."""
    from torch.distributed import checkpoint as dcp  # where needed: it takes a second to import

    parameters = {
        f"{name}/{n}": (p, optimizer) for name, (model, optimizer) in optimized.items() for n, p in model.named_parameters()
    }
    reader = dcp.FileSystemReader(folder)
    read: dict[str, Tensor] = {}
    for path, facts in reader.read_metadata().state_dict_metadata.items():
        name, _, key = path.rpartition("/")
        if name not in parameters or not isinstance(facts, dcp.metadata.TensorStorageMetadata):
            raise UnmaskError(f"{folder}: has {path!r}, which is nothing of this run's optimizers")
        parameter, optimizer = parameters[name]
        like = torch.zeros((), dtype=torch.float32, device=parameter.device) if not facts.size else torch.zeros_like(parameter)
        if facts.size != like.shape:
            raise UnmaskError(f"{folder}: {path!r} has shape {list(facts.size)}, expected {list(like.shape)}")
        read[path] = optimizer.state[parameter][key] = like
    dcp.load(read, storage_reader=reader, process_group=ranks.object_group, no_dist=ranks.size == 1)

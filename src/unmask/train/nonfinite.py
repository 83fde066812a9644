"""Updates whose loss or gradient is not finite: which samples are at fault, and the end of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from unmask.dist import whole
from unmask.errors import UnmaskError
from unmask.metrics import json_value
from unmask.objectives.rows import TrainRow, collate, pack_rows

if TYPE_CHECKING:
    from unmask.train.trainer import LossFn, Trainer

_NUM_NAMED = 3


@dataclass(frozen=True, slots=True)
class Alone:
    """What a sample's rows give without those of others: the sum of their losses, and the norm of their gradient."""

    id: str
    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


def measure_alone(trainer: Trainer[Any], rows: Sequence[TrainRow], loss_fn: LossFn) -> list[Alone]:
    """Each sample of an update by itself, in the order of the rows; ranks share them out. Leaves no gradients."""
    samples: dict[str, list[TrainRow]] = {}
    for number, row in enumerate(rows):
        samples.setdefault(row.sample or f"row {number}", []).append(row)
    ranks, names = trainer.ranks, list(samples)
    # Ranks that share the weights go through the model together: all forward every sample; the mean of equal gradients is one.
    mine = names if trainer.is_sharded else names[ranks.rank :: ranks.size]
    found = {name: _measure(trainer, name, samples[name], loss_fn) for name in mine}
    everywhere = {name: alone for of_rank in ranks.gather(found) for name, alone in of_rank.items()}
    return [everywhere[name] for name in names]


def _measure(trainer: Trainer[Any], name: str, rows: Sequence[TrainRow], loss_fn: LossFn) -> Alone:
    total = 0.0
    trainer.model.train()
    for pack in pack_rows(rows, trainer.max_tokens):
        with trainer.autocast():
            loss, _ = loss_fn(collate(pack, trainer.model.device))
        loss.backward()
        total += loss.item()
    trainer.model.eval()
    norm = whole(torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), math.inf))  # which clips nothing
    trainer.optimizer.zero_grad(set_to_none=True)
    return Alone(name, total, float(norm))


def stop_for_nonfinite(
    trainer: Trainer[Any], rows: Sequence[TrainRow], loss_fn: LossFn, loss: float, grad_norm: float
) -> NoReturn:  # fmt: skip
    """Finds the samples at fault, keeps what it found through `trainer.keep_report`, and raises `UnmaskError`, on all ranks."""
    measured = measure_alone(trainer, rows, loss_fn)
    at_fault = [alone for alone in measured if not alone.is_finite]
    listed = at_fault or measured
    report = {
        "model": trainer.model_name,
        "optimizer_step": trainer.optimizer_step,
        "loss": json_value(loss),
        "grad_norm": json_value(grad_norm),
        "num_samples": len(measured),
        "is_any_sample_nonfinite": bool(at_fault),
        "samples": [{"id": a.id, "loss": json_value(a.loss), "grad_norm": json_value(a.grad_norm)} for a in listed],
    }
    file = trainer.keep_report(report)
    names = ", ".join(alone.id for alone in listed[:_NUM_NAMED]) + (", ..." if len(listed) > _NUM_NAMED else "")
    if at_fault:
        cause = f"{len(at_fault)} of its {len(measured)} samples are at fault: {names}"
    else:
        cause = f"none of its {len(measured)} samples is at fault by itself: {names}"
    raise UnmaskError(
        f"{file}: {trainer.model_name}: an update with loss {loss:g} and gradient norm {grad_norm:g}, number "
        f"{trainer.num_nonfinite_in_a_row} in a row that is not finite; {cause}. The last checkpoint is intact: begin a new "
        "run from it without these samples or with a smaller learning rate, or go on with --resume and a larger "
        "train.max_nonfinite_updates"
    )

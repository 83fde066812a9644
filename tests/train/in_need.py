"""A trainer with something wrong: rows, or memory. As a program a rank of two that have that, started by torch's launcher."""

import copy
import json
import sys
from pathlib import Path

import torch

from tests.objectives.test_objectives import demonstrations
from tests.train.test_trainer import make_trainer
from unmask.dist import Ranks, joined_ranks
from unmask.errors import UnmaskError
from unmask.objectives.rows import RowBatch, name_rows, score_targets
from unmask.objectives.semi_ar import SemiAR

NAN = float("nan")


def made(max_nonfinite_updates: int = 3, max_tokens: int = 10**6):
    """A trainer, rows of six samples with names, their loss, what is said and what is reported."""
    trainer, _ = make_trainer(max_tokens, warmup_steps=8)
    objective = SemiAR(SemiAR.Options(num_masks=4), trainer.model.spec, 0)
    trainer.max_nonfinite_updates = max_nonfinite_updates
    rows = [row for item in demonstrations(6) for row in name_rows(objective.rows([item]), f"sample {item.key}")]

    def loss_fn(batch):
        return objective.loss(score_targets(trainer.model, batch, trainer.backend, excludes_mask=False), batch)

    said, reports = [], []
    trainer.say = said.append
    trainer.keep_report = lambda report: reports.append(report) or "FILE"
    return trainer, rows, loss_fn, said, reports


def spoiled(rows, *numbers: int):
    rows = copy.deepcopy(rows)
    for number in numbers:
        rows[number].values["weight"][-1] = NAN
    return rows


def limited(function, most: int, sizes: list[int] | None = None):
    """As `function`, on a device that holds packs of at most so many tokens. sizes: gets those that were tried."""

    def on_small_device(batch: RowBatch):
        num = batch.input_ids_BL.numel()
        if sizes is not None:
            sizes.append(num)
        found = function(batch)
        if num > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return found

    return on_small_device


def go(folder: Path, ranks: Ranks) -> None:
    trainer, rows, loss_fn, said, reports = made(max_nonfinite_updates=1, max_tokens=200)
    trainer.ranks = ranks
    most = 80 if ranks.rank == 1 else 10**6

    def logprobs(batch: RowBatch) -> torch.Tensor:
        return score_targets(trainer.model, batch, trainer.backend).logprobs_N

    trainer.set_values("logprobs", rows, limited(logprobs, most))
    values = [row.values["logprobs"].tolist() for row in rows]
    stats = trainer.update(rows, limited(loss_fn, most))
    bad = trainer.update(spoiled(rows, 1, 4), loss_fn)
    try:
        trainer.update(spoiled(rows, 1, 4), loss_fn)
    except UnmaskError as error:
        found = {"values": values, "said": said, "stats": stats, "bad": bad, "report": reports[0], "error": str(error)}
        (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined_ranks(torch.device("cpu")) as joined:
        go(Path(sys.argv[1]), joined)

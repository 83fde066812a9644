"""A rank whose memory does not suffice, or whose rows are bad: started by torch's launcher, with a folder."""

import json
import sys
from pathlib import Path

import torch

from tests.train.test_memory import limited
from tests.train.test_nonfinite import made, spoiled
from unmask.dist import Ranks, joined_ranks
from unmask.errors import UnmaskError


def go(folder: Path, ranks: Ranks) -> None:
    trainer, rows, loss_fn, said, reports = made(max_nonfinite_updates=1, max_tokens=200)
    trainer.ranks = ranks
    most = 80 if ranks.rank == 1 else 10**6
    stats = trainer.update(rows, limited(loss_fn, most))
    bad = trainer.update(spoiled(rows, 1, 4), loss_fn)
    try:
        trainer.update(spoiled(rows, 1, 4), loss_fn)
    except UnmaskError as error:
        found = {"said": said, "stats": stats, "bad": bad, "report": reports[0], "error": str(error)}
        (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined_ranks(torch.device("cpu")) as joined:
        go(Path(sys.argv[1]), joined)

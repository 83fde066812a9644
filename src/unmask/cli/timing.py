"""`unmask timings`."""

from __future__ import annotations

from collections import deque
from pathlib import Path

from rich.console import Console
from rich.table import Table

from unmask.errors import UnmaskError
from unmask.train.timings import FILE, Summary, read_timings, summarise

# Values below the phases, in this order, and the words for them; those of phases (update_mfu, ...) are columns.
_VALUES = {"trained_tokens_per_s": "trained tokens/s", "forwarded_tokens_per_s": "forwarded tokens/s"}


def run_timings(folder: Path, last: int) -> None:
    """Prints where the time of the newest `last` steps went. Raises `UnmaskError`."""
    steps = list(deque(read_timings(folder), maxlen=last))
    if not steps:
        raise UnmaskError(f"{folder}: nothing is recorded yet ({FILE} is empty)")
    found = summarise(steps)
    console = Console(highlight=False, soft_wrap=True)
    ranks = f", {found.num_ranks} ranks" if found.num_ranks > 1 else ""
    console.print(f"{folder}: steps {found.first_step} to {found.last_step}{ranks}", markup=False)
    console.print(make_table(found))
    for name, words in _VALUES.items():
        if name in found.means:
            console.print(f"{words} {found.means[name]:,.0f}")
    memory, rank = found.largest_memory_gb
    console.print(f"peak memory {memory:.2f} GB" + (f" (rank {rank})" if found.num_ranks > 1 else ""))


def make_table(found: Summary) -> Table:
    """A line for each phase; columns that nothing has are left out."""
    columns = {
        "phase": [phase.name for phase in found.phases],
        "seconds": [f"{phase.seconds:.3f}" for phase in found.phases],
        # An evaluation is no part of a step.
        "of a step": ["" if phase.name == "eval" else f"{phase.share:.1%}" for phase in found.phases],
        "TFLOP/s": [_number(found.means.get(f"{phase.name}_tflop_per_s"), ".3g") for phase in found.phases],
        "MFU": [_number(found.means.get(f"{phase.name}_mfu"), ".1%") for phase in found.phases],
    }
    if found.num_ranks > 1:
        columns["waited"] = [f"{phase.seconds - phase.busy_s:.3f}" for phase in found.phases]
        columns["slowest"] = [f"rank {phase.slowest_rank}" for phase in found.phases]
        columns["imbalance"] = [f"{phase.imbalance:.2f}" for phase in found.phases]
    table = Table(box=None, pad_edge=False)
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    for name in shown:
        table.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    for row in zip(*shown.values(), strict=True):
        table.add_row(*row)
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

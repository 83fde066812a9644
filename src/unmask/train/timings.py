"""Timings of the ranks of a run: the records of a step put together, and a run's timings.jsonl read and summed up. No torch.

timings.jsonl has a record for each step and rank, ascending; with several ranks each says which `rank` it is of. See
`Stopwatch.timings` for the values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.files import read_jsonl

FILE = "timings.jsonl"
_NO_VALUES = ("step", "rank")


def over_ranks(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the records of one step say together: the mean of each value over the ranks that have it and, of several ranks, as
    NAME_max the largest: what a straggler takes."""
    names = dict.fromkeys(name for record in records for name in record if name not in _NO_VALUES)
    if len(records) == 1:
        return {name: records[0][name] for name in names}
    together: dict[str, Any] = {}
    for name in names:
        values = [record[name] for record in records if name in record]
        together |= {name: sum(values) / len(values), f"{name}_max": max(values)}
    return together


def read_timings(folder: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """(step, the records of its ranks) of a run folder, in order. Raises `UnmaskError` for what is missing or malformed."""
    if not (folder / FILE).is_file():
        raise UnmaskError(f"{folder}: not a run folder (no {FILE})" if folder.is_dir() else f"{folder}: no such folder")
    for step, group in groupby(_checked(folder / FILE), key=lambda record: record["step"]):
        yield step, list(group)


def _checked(file: Path) -> Iterator[dict[str, Any]]:
    for where, record in read_jsonl(file):
        if type(record.get("step")) is not int:
            raise UnmaskError(f"{where}: step is {record.get('step')!r}, expected a whole number")
        for name, value in {"step_s": None, **record}.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UnmaskError(f"{where}: {name} is {value!r}, expected a number")
        yield record


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase over some steps. Seconds are means over the ranks, per step that has it.

    busy_s: of `seconds`, without waiting for other ranks. slowest_rank: the one with the largest mean of busy seconds, which
    are imbalance times busy_s: 1 = all are equally busy. share: of the seconds of all steps.
    """

    name: str
    seconds: float
    busy_s: float
    slowest_rank: int
    imbalance: float
    share: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Some steps of a run: its phases in their order (then "rest", what lies between them, "step" and, where there were
    evaluations, "eval", which is no part of a step), and the means of all other values; `largest_memory_gb` with its rank."""

    first_step: int
    last_step: int
    num_ranks: int
    phases: list[Phase]
    means: dict[str, float]
    largest_memory_gb: tuple[float, int]


def summarise(steps: Sequence[tuple[int, Sequence[Mapping[str, Any]]]]) -> Summary:
    """Of steps as `read_timings` yields them, at least one. Where the number of ranks has changed (a resumption), of the newest
    steps that have the last one."""
    num_ranks = len(steps[-1][1])
    first = next((i + 1 for i in reversed(range(len(steps))) if len(steps[i][1]) != num_ranks), 0)
    steps = steps[first:]
    by_rank = [[ranks[rank] for _, ranks in steps] for rank in range(num_ranks)]
    names = dict.fromkeys(name for _, ranks in steps for record in ranks for name in record if name not in _NO_VALUES)
    phases = [name for name in names if name.endswith("_s") and not name.endswith(("_wait_s", "_per_s"))]
    phases = [name for name in phases if name not in ("step_s", "eval_s")]
    for records in by_rank:
        for i, record in enumerate(records):
            records[i] = {**record, "rest_s": record["step_s"] - sum(record.get(name, 0.0) for name in phases)}
    total = sum(record["step_s"] for records in by_rank for record in records)
    found = [_phase(name, by_rank, total) for name in (*phases, "rest_s", "step_s", *(["eval_s"] if "eval_s" in names else []))]
    others = [name for name in names if not name.endswith("_s") or name.endswith("_per_s")]
    together = [over_ranks(ranks) for _, ranks in steps]
    means = {name: _mean([values[name] for values in together if name in values]) for name in others}
    memory = max((records[-1].get("peak_memory_gb", 0.0), rank) for rank, records in enumerate(by_rank))
    return Summary(steps[0][0], steps[-1][0], num_ranks, found, means, memory)


def _phase(name: str, by_rank: Sequence[Sequence[Mapping[str, Any]]], total: float) -> Phase:
    wait = f"{name[:-2]}_wait_s"
    having = [[record for record in records if name in record] for records in by_rank]
    seconds = [_mean([record[name] for record in records]) for records in having]
    busy = [_mean([record[name] - record.get(wait, 0.0) for record in records]) for records in having]
    mean_busy, slowest = _mean(busy), max(range(len(busy)), key=lambda rank: busy[rank])
    share = sum(record[name] for records in having for record in records) / total if total else 0.0
    imbalance = busy[slowest] / mean_busy if mean_busy > 0 else 1.0
    return Phase(name.removesuffix("_s"), _mean(seconds), mean_busy, slowest, imbalance, share)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))

"""Timing as ratios: candidates take turns, so that a machine whose speed drifts slows all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def median_seconds(candidates: dict[str, Callable[[], object]], rounds: int = 5, warm_up: int = 1) -> dict[str, float]:
    """Median wall-clock seconds of each candidate over `rounds` turns, after `warm_up` more."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + warm_up):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn >= warm_up:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def print_ratios(title: str, seconds: dict[str, float], baseline: str, notes: dict[str, str] | None = None) -> None:
    print(title)
    for name, value in seconds.items():
        note = f"   {notes[name]}" if notes and name in notes else ""
        print(f"  {name:<34} {value * 1e3:9.1f} ms   {seconds[baseline] / value:6.2f}x{note}")

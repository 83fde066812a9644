"""Curves of training runs: what their folders recorded, runs of one label joined, as charts and as a page."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.files import read_jsonl
from unmask.train.timings import FILE, over_ranks, read_timings
from unmask.viewer.charts import Chart, Series, format_value
from unmask.viewer.report import Detail, Report, Table, render_report

# Metric -> its values by step, ascending.
Curves = Mapping[str, Mapping[int, float]]

# What is drawn unless metrics are named, the most important first, with the words for the axis.
METRICS = {
    "eval/accuracy": "mean reward, held-out",
    "reward_mean": "mean reward of the rollouts",
    "accuracy": "share of right rollouts",
    "pass_at_group": "share of prompts",
    "tokens_per_forward": "tokens per forward",
    "eval/tokens_per_forward": "tokens per forward, held-out",
    "response_length": "tokens",
    "cut_share": "share of responses",
    "loss": "loss",
    "token_accuracy": "share of trained tokens",
    "kl": "nats per token",
    "ref_kl": "nats per token",
    "mismatch_kl": "nats per token",
    "entropy": "nats per token",
    "clip_share": "share of trained tokens",
    "grad_norm": "L2 norm",
    "value_loss": "loss of the value model",
    "explained_variance": "share of variance",
    "groups_without_signal": "prompts",
    "step_s": "seconds",
    "rollout_s": "seconds",
    "update_s": "seconds",
    "forwarded_tokens_per_s": "tokens per second",
    "update_tflop_per_s": "10^12 operations per second",
    "peak_memory_gb": "10^9 bytes",
}

MAX_POINTS = 1000  # of one curve: more are not seen in a chart, and every value is in its table
NUM_COLUMNS = 4  # metrics in the table of runs


def load_run(folder: Path) -> dict[str, dict[int, float]]:
    """What the run in this folder recorded, from metrics.jsonl and (where there is one) timings.jsonl; of several ranks the
    mean and, as NAME_max, the largest timing.

    Raises `UnmaskError` where there is no run, nothing recorded yet, or a malformed line (named as file:line).
    """
    if not folder.is_dir():
        raise UnmaskError(f"{folder}: {'is a file' if folder.exists() else 'no such folder'}; expected the folder of a run")
    if not (folder / "metrics.jsonl").is_file():
        inside = sorted(file.parent.name for file in folder.glob("*/metrics.jsonl"))
        hint = f"; runs in it: {', '.join(inside)}" if inside else ""
        raise UnmaskError(f"{folder}: not a run folder (no metrics.jsonl){hint}")
    curves: dict[str, dict[int, float]] = {}
    for where, record in (*read_jsonl(folder / "metrics.jsonl"), *_timings(folder)):
        step = record.pop("step", None)
        if type(step) is not int:
            raise UnmaskError(f"{where}: step is {step!r}, expected a whole number")
        for name, value in record.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UnmaskError(f"{where}: {name} is {value!r}, expected a number")
            curve = curves.setdefault(name, {})
            if curve and step <= next(reversed(curve)):
                raise UnmaskError(f"{where}: {name} of step {step} comes after that of step {next(reversed(curve))}")
            curve[step] = float(value)
    if not curves:
        raise UnmaskError(f"{folder}: nothing is recorded yet (metrics.jsonl is empty)")
    return curves


def _timings(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file, record of a step): what its ranks say together."""
    if (folder / FILE).is_file():
        for step, records in read_timings(folder):
            yield str(folder / FILE), {"step": step, **over_ranks(records)}


def choose_metrics(runs: Sequence[Curves], names: Sequence[str]) -> list[str]:
    """The named metrics, each once; without names those of `METRICS` that any run has (if it has none of them, all).

    Raises `UnmaskError` for a name that no run has, with the nearest that there are.
    """
    known = list(dict.fromkeys(name for run in runs for name in run))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
            raise UnmaskError(f"unknown metric {name!r}; the nearest known names are {', '.join(near)}")
    return list(dict.fromkeys(names)) or [name for name in METRICS if name in known] or known


def make_charts(runs: Sequence[Curves], labels: Sequence[str], metrics: Sequence[str], smooth: int = 1) -> list[Chart]:
    """One chart a metric, one series a label, the same ones in every chart (empty where a label has no such metric).

    labels: one per run. Runs that share one are drawn as their mean with a band from the smallest to the largest, at the
        steps that all of them have.
    smooth: values are means over this many records, the newest and those before it; of each run by itself.
    """
    groups: dict[str, list[Curves]] = {}
    for run, label in zip(runs, labels, strict=True):
        groups.setdefault(label, []).append(run)
    charts = []
    for name in metrics:
        joined = [
            _join(_name(label, group), [run[name] for run in group if name in run], smooth) for label, group in groups.items()
        ]
        every = max(1, math.ceil(max(len(series.xs) for series in joined) / MAX_POINTS))
        caption = f"One of {every} steps is drawn." if every > 1 else ""
        charts.append(Chart(name, "step", METRICS.get(name, name), [_thin(s, every) for s in joined], caption=caption))
    return charts


def explain(labels: Sequence[str], smooth: int) -> str:
    """How the charts are to be read, in a sentence or two; empty where there is nothing to say."""
    notes = []
    if len(set(labels)) < len(labels):
        notes.append("Line: mean of the runs of one label. Area: from the smallest to the largest of them.")
    if smooth > 1:
        notes.append(f"Each value is the mean of up to {smooth} records, the newest and those before it.")
    return " ".join(notes)


def render_curves(
    title: str, folders: Sequence[Path], runs: Sequence[Curves], labels: Sequence[str], charts: Sequence[Chart], smooth: int = 1
) -> str:
    """The page: a table of the runs, the charts, each run's recipe where its folder has one."""
    metrics = [chart.title for chart in charts[:NUM_COLUMNS]]
    rows: list[list[str | int]] = [
        [str(folder), label, max(max(curve) for curve in run.values()), *(_last(run.get(name)) for name in metrics)]
        for folder, label, run in zip(folders, labels, runs, strict=True)
    ]
    recipes = [(folder, folder / "recipe.toml") for folder in folders if (folder / "recipe.toml").is_file()]
    return render_report(
        Report(
            title=title,
            paragraphs=[note] if (note := explain(labels, smooth)) else [],
            tables=[Table("Runs", ["run", "label", "last step", *metrics], rows, "The newest recorded value of each metric.")],
            charts=charts,
            details=[Detail(f"Recipe of {folder}", file.read_text("utf-8", "replace")) for folder, file in recipes],
        )
    )


def _name(label: str, group: Sequence[Curves]) -> str:
    return f"{label} ({len(group)} runs)" if len(group) > 1 else label


def _last(curve: Mapping[int, float] | None) -> str:
    return format_value(list(curve.values())[-1] if curve else math.nan)


def _join(name: str, curves: Sequence[Mapping[int, float]], smooth: int) -> Series:
    smoothed = [_smooth(curve, smooth) for curve in curves]
    steps = sorted(set.intersection(*map(set, smoothed))) if smoothed else []
    columns = [[curve[step] for curve in smoothed] for step in steps]
    means = [sum(values) / len(values) for values in columns]
    return Series(name, steps, means, [(min(values), max(values)) for values in columns] if len(smoothed) > 1 else ())


def _smooth(curve: Mapping[int, float], smooth: int) -> dict[int, float]:
    values = list(curve.values())
    windows = (values[max(0, i + 1 - smooth) : i + 1] for i in range(len(values)))
    return {step: sum(window) / len(window) for step, window in zip(curve, windows, strict=True)}


def _thin(series: Series, every: int) -> Series:
    """Every n-th point, counted from the last."""
    first = (len(series.xs) - 1) % every
    return Series(series.name, series.xs[first::every], series.ys[first::every], series.band[first::every])

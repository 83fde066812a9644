"""Runs the experiments of this folder: every cell of NAME.toml with every seed, then a small table, a CSV file and a plot.

    python experiments/run.py objectives            # begins with the checkpoint that objectives.toml names
    python experiments/run.py                       # lists them

Runs are ordinary run folders under --out; what is there already is continued or kept. results/NAME/ gets the small form.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import statistics
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

from unmask.files import new_file

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"


def unmask(words: list[str]) -> None:
    """Runs the command; where it fails, it has said why, and this program ends with its exit code."""
    print("unmask", *words, flush=True)
    code = subprocess.run([sys.executable, "-m", "unmask", *words], cwd=ROOT).returncode
    if code:
        sys.exit(code)


def run_cells(plan: dict, base: Path, out: Path, seeds: list[int]) -> dict[tuple[str, int], Path]:
    """The run folder of every cell and seed."""

    def fill(words: list[str]) -> list[str]:
        return [word.replace("{base}", str(base)).replace("{out}", str(out)) for word in words]

    done = out / "prepared"
    if "prepare" in plan and not done.exists():
        out.mkdir(parents=True, exist_ok=True)
        for words in plan["prepare"]:
            words = fill(words)
            runs = [Path(word.removeprefix("run.dir=")) for word in words if word.startswith("run.dir=")]
            is_begun = any((run / "recipe.toml").exists() for run in runs)
            unmask([*words, *plan["settings_given"], *(["--resume"] if is_begun else [])])
        done.touch()
    folders = {}
    for seed in seeds:
        for cell, settings in plan["cells"].items():
            folder = folders[cell, seed] = out / f"{cell}-seed-{seed}"
            words = [*plan["command"], f"model.path={base}", *fill(plan["settings"]), *fill(settings)]
            is_begun = (folder / "recipe.toml").exists()
            unmask([*words, f"run.dir={folder}", f"run.seed={seed}", *(["--resume"] if is_begun else [])])
    return folders


def wobble(curve: Sequence[float]) -> float:
    """Spread about the trend: standard deviation of a value, were neighbours independent; a slow rise adds next to nothing."""
    steps = [b - a for a, b in itertools.pairwise(curve)]
    return math.sqrt(statistics.mean(step * step for step in steps) / 2) if steps else math.nan


def summarise(name: str, plan: dict, folders: dict[tuple[str, int], Path], base: Path) -> None:
    curves: dict[tuple[str, str], dict[int, dict[int, float]]] = {}  # (cell, metric) -> seed -> step -> value
    for (cell, seed), folder in folders.items():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            for metric in plan["metrics"]:
                if metric in record:
                    curves.setdefault((cell, metric), {}).setdefault(seed, {})[record["step"]] = record[metric]
    write_csv(
        name, ("cell", "metric", "seed", "step", "value"),
        ((*key, seed, step, f"{value:.6g}")
         for key, by_seed in curves.items() for seed, curve in by_seed.items() for step, value in curve.items()),
    )  # fmt: skip
    rows = []
    for (cell, metric), by_seed in curves.items():
        values = [list(curve.values()) for curve in by_seed.values()]
        first, last, spread = (
            statistics.mean(map(of, values)) for of in (lambda v: v[0], lambda v: v[-1], lambda v: wobble(v))
        )
        each = " / ".join(f"{v[-1]:.3f}" for v in values)
        rows.append((cell, metric, f"{first:.3f}", f"{last:.3f}", each, f"{spread:.3f}"))
    tables = [(("cell", "metric", "first", "last", "last, per seed", "wobble"), rows)]
    if "measure" in plan:
        tables.insert(0, measure_last(plan, folders, base))
    write_tables(name, plan["question"], tables)
    drawn = {key: folder for key, folder in folders.items() if key[0] in plan.get("drawn", plan["cells"])}
    labels = [word for cell, _ in drawn for word in ("--label", cell)]
    metrics = [word for metric in plan["metrics"] for word in ("--metric", metric)]
    unmask(["plot", *map(str, drawn.values()), *labels, *metrics, "--output", str(RESULTS / name / "plot.png")])


def measure_last(plan: dict, folders: dict[tuple[str, int], Path], base: Path) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Header and rows of a table: what the runs began and ended with under `unmask eval`, and the tokens forwarded."""

    def accuracies(checkpoint: Path, target: Path) -> dict[str, float]:
        modes = evaluate(checkpoint, plan["measure"], plan["settings_given"], target)["modes"]
        return {mode: facts["metrics"]["accuracy"] for mode, facts in modes.items()}

    before = accuracies(base, next(iter(folders.values())).parent / "measured")
    rows: list[Sequence[str]] = [("before", "", *(f"{value:.1%}" for value in before.values()))]
    by_cell: dict[str, list[tuple[float, ...]]] = {}
    for (cell, _), folder in folders.items():
        records = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        num_tokens = sum(record.get("num_tokens", 0) for record in records)
        by_cell.setdefault(cell, []).append((num_tokens, *accuracies(folder, folder / "measured").values()))
    for cell, values in by_cell.items():
        num_tokens, *columns = zip(*values, strict=True)
        each = [f"{statistics.mean(column):.1%} ({' / '.join(f'{v:.1%}' for v in column)})" for column in columns]
        rows.append((cell, f"{statistics.mean(num_tokens) / 1e6:.3f}", *each))
    return ("cell", "million tokens forwarded", *(f"accuracy, {mode} (per seed)" for mode in before)), rows


def evaluate(checkpoint: Path, words: list[str], settings: list[str], target: Path) -> dict:
    """What `unmask eval` found on its only task; what is there already is not measured again."""
    if not (target / "results.json").exists():
        unmask(["eval", str(checkpoint), *words, *settings, "--output", str(target)])
    (task,) = json.loads((target / "results.json").read_text())["tasks"].values()
    return task


def compare_decoding(name: str, plan: dict, base: Path, out: Path, seeds: list[int]) -> None:
    """`unmask eval` of the base and of what another experiment's first cell made of it."""
    cell = next(iter(tomllib.loads((HERE / f"{plan['after']}.toml").read_text())["cells"]))
    after = {f"{cell}, seed {seed}": out.parent / plan["after"] / f"{cell}-seed-{seed}" for seed in seeds}
    rows = []
    for label, folder in {"base": base, **after}.items():
        task = evaluate(folder, plan["evaluate"], plan["settings"], out / label.replace(", ", "-").replace(" ", "-"))
        for mode, facts in task["modes"].items():
            numbers = [facts["metrics"][key] for key in ("accuracy", "standard_error", "tokens_per_forward")]
            rows.append((label, mode, *numbers))
    write_csv(name, ("checkpoint", "mode", "accuracy", "standard_error", "tokens_per_forward"), rows)
    table = [(label, mode, f"{a:.1%} ± {e:.1%}", f"{tpf:.2f}") for label, mode, a, e, tpf in rows]
    write_tables(name, plan["question"], [(("checkpoint", "mode", "accuracy", "tokens per forward"), table)])
    draw_moves(name, rows)


def draw_moves(name: str, rows: Sequence[tuple[str, str, float, float, float]]) -> None:
    """An arrow for each mode, from the base to the mean of the other checkpoints."""
    from matplotlib.figure import Figure

    figure = Figure((6.6, 4.4), dpi=130, layout="constrained")
    axes = figure.add_subplot(xlabel="tokens per forward", ylabel="accuracy", title="From the base to the checkpoints after RL")
    for colour, mode in enumerate(dict.fromkeys(row[1] for row in rows)):
        before, *after = [(row[4], row[2]) for row in rows if row[1] == mode]
        end = [statistics.mean(values) for values in zip(*after, strict=True)]
        axes.annotate("", end, before, arrowprops={"arrowstyle": "->", "color": f"C{colour}", "lw": 1.8})
        axes.plot(*zip(before, end, strict=True), "o", color=f"C{colour}", label=mode)
    axes.grid(color="#dce1e8")
    axes.legend(frameon=False, fontsize=9)
    with new_file(RESULTS / name / "plot.png") as temporary:
        figure.savefig(temporary, format="png")


def write_csv(name: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    (RESULTS / name).mkdir(parents=True, exist_ok=True)
    with open(RESULTS / name / "metrics.csv", "w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def write_tables(name: str, question: str, tables: Iterable[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Tables are header and rows."""
    parts = [question]
    for header, rows in tables:
        lines = [" | ".join(row) for row in (header, ["---"] * len(header), *rows)]
        parts.append("\n".join(f"| {line} |" for line in lines))
    text = "\n\n".join(parts) + "\n"
    (RESULTS / name / "summary.md").write_text(text)
    print(text)


def main() -> None:
    plans = {file.stem: tomllib.loads(file.read_text()) for file in sorted(HERE.glob("*.toml"))}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", choices=plans)
    parser.add_argument("--base", type=Path, help="checkpoint or run that all runs begin with, instead of the plan's")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="further settings of every run, for example run.num_threads=1")
    args = parser.parse_args()
    if args.name is None:
        for name, plan in plans.items():
            print(f"{name:16} {plan['question']}")
        return
    plan = plans[args.name]
    plan["settings_given"] = [word for word in args.set if word.startswith("run.")]  # for what prepares, too
    plan["settings"] = [*plan.get("settings", []), *args.set]
    out = (args.out / args.name).resolve()
    base = (args.base or ROOT / plan["base"].replace("{out}", str(out))).resolve()
    if not base.is_dir() and not base.is_relative_to(out):  # what lies there, the plan prepares
        parser.error(f"{base}: no such folder; {plan['base']} comes from: {plan['base_from']}")
    if "cells" in plan:
        summarise(args.name, plan, run_cells(plan, base, out, args.seeds), base)
    else:
        compare_decoding(args.name, plan, base, out, args.seeds)


if __name__ == "__main__":
    main()

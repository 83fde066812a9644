"""Runs the experiments of this folder: every cell of NAME.toml with every seed, then a small table, a CSV file and a plot.

    python experiments/run.py objectives --base runs/quickstart-seed-0/2-sft-sloppy
    python experiments/run.py                       # lists them

Runs are ordinary run folders under --out; what is there already is continued or kept. results/NAME/ gets the small form.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def unmask(words: list[str]) -> None:
    print("unmask", *words, flush=True)
    subprocess.run([sys.executable, "-m", "unmask", *words], check=True, cwd=ROOT)


def run_cells(name: str, plan: dict, base: str, out: Path, seeds: list[int]) -> dict[tuple[str, int], Path]:
    """The run folder of every cell and seed."""

    def fill(words: list[str]) -> list[str]:
        return [word.replace("{base}", base).replace("{out}", str(out)) for word in words]

    if not (out / "prepared").exists():
        for words in plan.get("prepare", []):
            unmask(fill(words))
        out.mkdir(parents=True, exist_ok=True)
        (out / "prepared").touch()
    folders = {}
    for seed in seeds:
        for cell, settings in plan["cells"].items():
            folder = folders[cell, seed] = out / f"{cell}-seed-{seed}"
            words = [*plan["command"], *fill(plan["settings"]), *fill(settings), f"run.dir={folder}", f"run.seed={seed}"]
            if plan["command"][0] == "rl":
                words.append(f"model.path={base}")
            is_begun = (folder / "recipe.toml").exists()
            unmask([*words, *(["--resume"] if is_begun else [])])
    return folders


def summarise(name: str, plan: dict, folders: dict[tuple[str, int], Path]) -> None:
    results = HERE / "results" / name
    results.mkdir(parents=True, exist_ok=True)
    rows: list[tuple[str, int, int, str, float]] = []
    for (cell, seed), folder in folders.items():
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            rows += [(cell, seed, record["step"], m, record[m]) for m in plan["metrics"] if m in record]
    with open(results / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("cell", "seed", "step", "metric", "value"))
        writer.writerows((c, s, n, m, f"{v:.6g}") for c, s, n, m, v in rows)
    lines = [f"{plan['question']}", "", "| cell | metric | first | last | per seed |", "|---|---|---|---|---|"]
    for cell in plan["cells"]:
        for metric in plan["metrics"]:
            curves = {
                seed: [v for c, s, _, m, v in sorted(rows, key=lambda r: r[2]) if (c, s, m) == (cell, seed, metric)]
                for seed in sorted({s for _, s in folders})
            }
            first, last = (statistics.mean(curve[i] for curve in curves.values()) for i in (0, -1))
            each = " / ".join(f"{curve[-1]:.3f}" for curve in curves.values())
            lines.append(f"| {cell} | {metric} | {first:.3f} | {last:.3f} | {each} |")
    (results / "summary.md").write_text("\n".join(lines) + "\n")
    print((results / "summary.md").read_text())
    labels = [word for cell, _ in folders for word in ("--label", cell)]
    metrics = [word for metric in plan["metrics"] for word in ("--metric", metric)]
    unmask(["plot", *map(str, folders.values()), *labels, *metrics, "--output", str(results / "plot.png")])


def compare_decoding(name: str, plan: dict, base: str, out: Path, seeds: list[int]) -> None:
    """`unmask eval` of the base and of what another experiment's first cell made of it."""
    other = tomllib.loads((HERE / f"{plan['after']}.toml").read_text())
    cell = next(iter(other["cells"]))
    after = {f"{cell}, seed {seed}": out.parent / plan["after"] / f"{cell}-seed-{seed}" for seed in seeds}
    rows = []
    for label, folder in {"base": Path(base), **after}.items():
        target = out / label.replace(", ", "-").replace(" ", "-")
        if not (target / "results.json").exists():
            unmask(["eval", str(folder), *plan["evaluate"], "--output", str(target)])
        for mode, facts in json.loads((target / "results.json").read_text())["modes"].items():
            rows.append((label, mode, facts["accuracy"], facts["standard_error"], facts["tokens_per_forward"]))
    results = HERE / "results" / name
    results.mkdir(parents=True, exist_ok=True)
    lines = [plan["question"], "", "| checkpoint | mode | accuracy | tokens per forward |", "|---|---|---|---|"]
    lines += [f"| {label} | {mode} | {a:.1%} ± {e:.1%} | {tpf:.2f} |" for label, mode, a, e, tpf in rows]
    (results / "summary.md").write_text("\n".join(lines) + "\n")
    print((results / "summary.md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = sorted(file.stem for file in HERE.glob("*.toml"))
    parser.add_argument("name", nargs="?", choices=known)
    parser.add_argument("--base", default="runs/quickstart-seed-0/2-sft-sloppy", help="checkpoint or run that RL begins with")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="*", default=[], help="further settings of every run, for example run.num_threads=1")
    args = parser.parse_args()
    if args.name is None:
        for name in known:
            print(f"{name:16} {tomllib.loads((HERE / f'{name}.toml').read_text())['question']}")
        return
    plan = tomllib.loads((HERE / f"{args.name}.toml").read_text())
    plan["settings"] = [*plan.get("settings", []), *args.set]
    out = (args.out / args.name).resolve()
    if "cells" not in plan:
        compare_decoding(args.name, plan, str(Path(args.base).resolve()), out, args.seeds)
        return
    summarise(args.name, plan, run_cells(args.name, plan, str(Path(args.base).resolve()), out, args.seeds))


if __name__ == "__main__":
    main()

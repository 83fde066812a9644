"""The experiments' plans are recipes that resolve, and one of them runs, at a size of seconds."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import tomllib
from pathlib import Path

import pytest

from tests.recipes import SFT, unmask, write_recipe

ROOT = Path(__file__).parents[2]
PLANS = {file.stem: tomllib.loads(file.read_text()) for file in sorted((ROOT / "experiments").glob("*.toml"))}
CELLS = [(name, cell) for name, plan in PLANS.items() for cell in plan.get("cells", ())]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """experiments/run.py as a module that runs commands within this process and writes its results elsewhere."""
    spec = importlib.util.spec_from_file_location("experiments_run", ROOT / "experiments" / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def command(words):
        done = unmask(*words)
        assert done.returncode == 0, done.stderr

    monkeypatch.setattr(module, "unmask", command)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    monkeypatch.chdir(ROOT)
    return module


@pytest.fixture
def main(run, monkeypatch):
    def call(*words):
        monkeypatch.setattr("sys.argv", ["run.py", *map(str, words)])
        run.main()

    return call


@pytest.mark.parametrize(("name", "cell"), CELLS)
def test_every_cell_is_a_recipe(monkeypatch, name, cell) -> None:
    monkeypatch.chdir(ROOT)
    plan = PLANS[name]
    words = [*plan["command"], "model.path=BASE", *plan["settings"], *plan["cells"][cell]]
    done = unmask(*words, "run.dir=RUN", "run.seed=0", "--dry-run")
    assert done.returncode == 0, done.stderr
    recipe = tomllib.loads(done.stdout)
    assert recipe["eval"]["at_start"]
    assert recipe["eval"]["every_steps"]
    assert {metric.removeprefix("eval/") for metric in plan["metrics"]} >= {"accuracy"}


def test_every_plan_has_its_results_and_its_words() -> None:
    text = (ROOT / "experiments" / "README.md").read_text()
    for name in PLANS:
        assert {file.name for file in (ROOT / "experiments" / "results" / name).iterdir()} == {
            "summary.md", "metrics.csv", "plot.png",
        }  # fmt: skip
        assert f"results/{name}/summary.md" in text


def test_wobble_sees_no_trend(run) -> None:
    assert run.wobble([0.0, 0.1, 0.2, 0.3]) == pytest.approx(0.1 / math.sqrt(2))
    assert run.wobble([0.5, 0.9, 0.5, 0.9, 0.5]) == pytest.approx(0.4 / math.sqrt(2))
    assert math.isnan(run.wobble([1.0]))


def test_a_missing_base_is_one_line(main, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit) as error:
        main("objectives", "--base", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert error.value.code == 2
    assert (
        "nowhere: no such folder; runs/quickstart-seed-0/2-sft-sloppy comes from: unmask quickstart" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_small_run_and_its_continuation(main, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    base, out, results = tmp_path / "base", tmp_path / "out", tmp_path / "results"
    words = ("train.max_steps=1", "eval.every_steps=0", f"run.dir={base}")
    assert unmask("sft", write_recipe(tmp_path, "sft", SFT), *words).returncode == 0
    small = ("--base", base, "--out", out, "--seeds", 0, 1, "--set", "run.num_threads=1")
    tiny = ("train.max_steps=2", "train.prompts_per_step=2", "train.group_size=2", "eval.num_examples=2")
    tiny += ("rollout.max_new_tokens=8", "value.warmup_steps=1")
    for _ in range(2):  # the second time everything is there
        main("objectives", *small, *tiny, "eval.sampling.max_new_tokens=8", "eval.every_steps=1")
    with open(results / "objectives" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    cells = PLANS["objectives"]["cells"]
    accuracy = [(r["cell"], r["seed"], r["step"]) for r in rows if r["metric"] == "eval/accuracy"]
    assert accuracy == [(cell, seed, step) for cell in cells for seed in "01" for step in "012"]
    table = (results / "objectives" / "summary.md").read_text()
    assert all(f"| {cell} | eval/accuracy | " in table for cell in cells)
    assert (results / "objectives" / "plot.png").stat().st_size > 10_000
    first = next(iter(cells))
    decode = ("num_examples=2", *(f"modes.{mode}.max_new_tokens=8" for mode in ("static", "dynamic")))
    main("decoding", *small, *decode)
    with open(results / "decoding" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [r["checkpoint"] for r in rows[::5]] == ["base", f"{first}, seed 0", f"{first}, seed 1"]
    assert (results / "decoding" / "plot.png").stat().st_size > 10_000


PLAN = """
question = "Does it?"
base = "{{out}}/teacher/checkpoints/step-00000002"
prepare = [
  [
    "sft", "{recipe}", "model.preset=sdar/tiny", "train.max_steps=3", "eval.every_steps=0", "checkpoint.keep_last=9",
    "run.dir={{out}}/teacher",
  ],
]
command = ["sft", "{recipe}"]
settings = ["train.max_steps=2", "eval.every_steps=1", "eval.at_start=true", "optimizer.lr=1e-4"]
measure = ["num_examples=2", "--sampling", "greedy", "modes.greedy={{max_new_tokens=8, temperature=0.0}}"]
metrics = ["eval/accuracy"]
[cells]
few = ["train.batch_size=2"]
more = ["train.batch_size=4"]
"""


def test_a_plan_that_prepares_its_base_and_measures_its_runs(run, main, tmp_path, monkeypatch) -> None:
    pytest.importorskip("matplotlib")
    plans = tmp_path / "plans"
    plans.mkdir()
    monkeypatch.setattr(run, "HERE", plans)
    (plans / "mini.toml").write_text(PLAN.format(recipe=write_recipe(tmp_path, "sft", SFT[SFT.index("[source]") :])))
    out = tmp_path / "out"
    main("mini", "--out", out, "--seeds", 0, 1, "--set", "run.num_threads=1")
    assert (out / "mini" / "few-seed-0" / "origins.json").read_text().count("step-00000002")
    header, _, before, few, more = (tmp_path / "results" / "mini" / "summary.md").read_text().splitlines()[2:7]
    assert header == "| cell | million tokens forwarded | accuracy, greedy (per seed) |"
    assert before.startswith("| before |  | ")
    for line, cell in ((few, "few"), (more, "more")):
        records = [
            json.loads(text)
            for seed in (0, 1)
            for text in (out / "mini" / f"{cell}-seed-{seed}" / "metrics.jsonl").read_text().splitlines()
        ]
        num_tokens = sum(record.get("num_tokens", 0) for record in records) / 2
        assert num_tokens > 0
        assert line.startswith(f"| {cell} | {num_tokens / 1e6:.3f} | ")
        results = [json.loads((out / "mini" / f"{cell}-seed-{s}" / "measured" / "results.json").read_text()) for s in (0, 1)]
        values = [r["tasks"]["chained_arithmetic"]["modes"]["greedy"]["metrics"]["accuracy"] for r in results]
        assert line.endswith(f"| {sum(values) / 2:.1%} ({values[0]:.1%} / {values[1]:.1%}) |")

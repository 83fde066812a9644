"""`unmask plot`: what is written where, and one line for every mistake."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tests.recipes import unmask


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """The current folder, with runs a/1, a/2 and b/1."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a/1", "a/2", "b/1")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows = [{"step": step, "loss": step + i, "kl": 0.1} for step in range(1, 5)] + [{"step": 4, "eval/accuracy": 0.5}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "timings.jsonl").write_text("".join(f'{{"step": {step}, "step_s": 0.5}}\n' for step in range(1, 5)))
    return tmp_path


def titles(page: Path) -> list[str]:
    return re.findall(r'<figure class="chart"><h3>(.*?)</h3>', page.read_text())


def test_one_run_is_drawn_into_its_folder(runs) -> None:
    result = unmask("plot", "a/1")
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, ["a/1/plot.html", "a/1/plot.png"], "")
    assert titles(runs / "a/1/plot.html") == ["eval/accuracy", "loss", "kl", "step_s"]
    assert (runs / "a/1/plot.png").read_bytes().startswith(b"\x89PNG")


def test_several_runs_are_drawn_here_under_their_labels(runs) -> None:
    result = unmask("plot", "a/1", "a/2", "b/1", "--label", "x", "--label", "x", "--label", "y", "--metric", "loss")
    assert (result.returncode, result.stdout.split()) == (0, ["plot.html", "plot.png"])
    page = (runs / "plot.html").read_text()
    assert titles(runs / "plot.html") == ["loss"]
    assert "x (2 runs) <span" in page
    assert "4.5 (4 to 5)" in page  # the mean of the last step, and its range
    assert page.count('class="band ') == 1


def test_names_of_runs_that_are_equal_become_paths(runs) -> None:
    assert unmask("plot", "a/1", "b/1", "--output", "c.html").returncode == 0
    assert "a/1 <span" in (runs / "c.html").read_text()
    assert "b/1 <span" in (runs / "c.html").read_text()  # two runs, not one label


def test_output_is_a_folder_a_picture_or_a_page(runs) -> None:
    assert unmask("plot", "a/1", "--output", "new/folder").stdout.split() == ["new/folder/plot.html", "new/folder/plot.png"]
    assert unmask("plot", "a/1", "--output", "x/only.png").stdout.split() == ["x/only.png"]
    assert unmask("plot", "a/1", "--output", "x/only.html", "--smooth", 3).stdout.split() == ["x/only.html"]
    assert sorted(p.name for p in (runs / "x").iterdir()) == ["only.html", "only.png"]
    assert "up to 3 records" in (runs / "x/only.html").read_text()


def test_without_matplotlib_there_is_the_page(runs, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = unmask("plot", "a/1")
    assert (result.returncode, result.stdout.split()) == (2, ["a/1/plot.html"])
    assert result.stderr.count("\n") == 1
    assert "pip install 'unmask[plot]'" in result.stderr
    assert unmask("plot", "a/1", "--output", "page.html").returncode == 0


MISTAKES = {
    "no run": ([], "Missing argument 'RUN...'"),
    "no folder": (["none"], "none: no such folder"),
    "not a run": (["a"], "a: not a run folder (no metrics.jsonl); runs in it: 1, 2"),
    "unknown metric": (["a/1", "--metric", "los"], "unknown metric 'los'; the nearest known names are loss, "),
    "labels": (["a/1", "b/1", "--label", "x"], "1 labels for 2 runs; give one --label per run"),
    "given twice": (["a/1", "b/../a/1"], "a/1: given twice"),
    "malformed line": (["bad"], "bad/metrics.jsonl:2: not valid JSON"),
    "output is a file": (["a/1", "--output", "notes"], "notes: give a name that ends in .png"),
    "output of another kind": (["a/1", "--output", "plot.pdf"], "plot.pdf: give a name that ends in .png"),
    "picture is a folder": (["a/2", "--output", "taken"], "taken/plot.png: is a folder"),
    "smooth": (["a/1", "--smooth", "0"], "--smooth"),
    "below a file": (["a/1", "--output", "notes/x.html"], "File exists"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_one_line_and_nothing_is_written(case, runs) -> None:
    (runs / "bad").mkdir()
    (runs / "bad" / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo\n')
    (runs / "notes").write_text("mine")
    (runs / "taken" / "plot.png").mkdir(parents=True)
    words, message = MISTAKES[case]
    before = set(runs.rglob("*"))
    result = unmask("plot", *words)
    assert (result.returncode, result.stderr.count("\n"), result.stdout) == (2, 1, "")
    assert message in result.stderr
    assert set(runs.rglob("*")) == before

"""What a terminal shows of a run, at every width, and what a log file shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.recipes import SFT, unmask, write_recipe
from unmask.train.progress import NUM_ROWS, RL_COLUMNS, SFT_COLUMNS, Progress

METRICS = {name: 0.125 for name in (*RL_COLUMNS, *SFT_COLUMNS) if name not in ("value_loss", "mismatch_kl")}


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, height=30, color_system=None)


def shown(progress: Progress, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(progress.render())
    return console.file.getvalue().splitlines()


def run(width: int, columns=RL_COLUMNS, num_steps: int = 12) -> list[str]:
    progress = Progress("rl", 40, console=terminal(width), columns=columns)
    with progress:
        for step in range(1, num_steps + 1):
            progress.show_step(step, METRICS, {"accuracy": step / 100} if step % 5 == 0 else {})
            progress.show(step, {"loss": 1.0})
    return shown(progress, width)


def test_bar_newest_steps_and_newest_evaluation() -> None:
    bar, head, *rows, evaluation = run(200)
    assert "12/40" in bar
    assert "loss" not in bar  # numbers stand in the table
    assert head.split() == ["step", *(name for name in RL_COLUMNS if name in METRICS)]  # what the run has, in this order
    assert [row.split()[0] for row in rows] == [str(step) for step in range(13 - NUM_ROWS, 13)]
    assert evaluation == "evaluation after step 10: accuracy 0.1"
    assert run(200, SFT_COLUMNS)[1].split() == ["step", *SFT_COLUMNS]


@pytest.mark.parametrize("width", range(20, 120, 9))
def test_the_least_important_columns_go_first(width) -> None:
    lines = run(width)
    names = [name for name in RL_COLUMNS if name in METRICS]
    num = len(lines[1].split()) - 1
    assert lines[1].split() == ["step", *names[:num]]
    assert all(len(line) <= width for line in lines)
    assert len(lines) == NUM_ROWS + 3  # nothing is wrapped
    if num < len(names):
        assert len(lines[1].rstrip()) + 2 + len(names[num]) > width  # the next one would not fit


def test_a_column_that_comes_later_leaves_earlier_rows_empty() -> None:
    progress = Progress("rl", 4, console=terminal(80), columns=("kl", "value_loss"))
    progress.show_step(1, {"kl": 0.5}, {})
    progress.show_step(2, {"kl": 0.25, "value_loss": 3.0}, {})
    assert [line.split() for line in shown(progress, 80)[1:]] == [
        ["step", "kl", "value_loss"],
        ["1", "0.5"],
        ["2", "0.25", "3"],
    ]


def test_without_columns_numbers_stand_beside_the_bar() -> None:
    progress = Progress("decoding", 40, console=terminal(100), unit="answer")
    with progress:
        progress.show(3, {"tokens/s": 12.0})
    assert len(shown(progress, 100)) == 1
    assert "tokens/s 12" in shown(progress, 100)[0]


def test_the_last_state_stays_on_the_terminal() -> None:
    console = terminal(100)
    with Progress("sft", 2, console=console, columns=SFT_COLUMNS) as progress:
        for step in (1, 2):
            progress.show_step(step, {"loss": 1.5 * step}, {"accuracy": 0.5})
            progress.show(step, {})
        progress.say("a line above")
    text = console.file.getvalue()
    assert "a line above" in text
    assert text.rindex("a line above") < text.rindex("2/2") < text.rindex("evaluation after step 2: accuracy 0.5")


def test_elsewhere_a_plain_line_now_and_then() -> None:
    console = Console(file=io.StringIO(), width=20)
    with Progress("sft", 3, console=console, columns=SFT_COLUMNS) as progress:
        for step in (1, 2, 3):
            progress.show_step(step, METRICS, {"accuracy": 0.5})
            progress.show(step, {"loss": 0.5, "eval accuracy": 0.25})
    assert console.file.getvalue() == "sft: step 3/3, at most 0:00 left, loss 0.5  eval accuracy 0.25\n"


def test_a_run_shows_each_step_and_only_new_evaluations(tmp_path, monkeypatch) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr(Progress, "show_step", lambda self, *words: calls.append((self.columns, *words)))
    assert unmask("sft", write_recipe(tmp_path, "sft", SFT), f"run.dir={tmp_path / 'run'}").returncode == 0
    assert [step for _, step, _, _ in calls] == [1, 2, 3, 4, 5, 6]
    assert [step for _, step, _, evaluation in calls if evaluation] == [3, 6]
    assert all(columns == SFT_COLUMNS and set(columns) <= set(metrics) for columns, _, metrics, _ in calls)

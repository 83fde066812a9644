"""Live progress: in a terminal a bar, under it the newest steps of a training run; elsewhere a plain line now and then."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

LINE_EVERY_S = 15.0
NUM_ROWS = 8

# Columns of the table of steps, the most important first; those that a run does not have are left out.
RL_COLUMNS = (
    "reward_mean", "accuracy", "tokens_per_forward", "response_length", "kl", "entropy", "grad_norm", "seconds", "mismatch_kl",
    "clip_share", "cut_share", "pass_at_group", "groups_without_signal", "value_loss", "explained_variance",
)  # fmt: skip
SFT_COLUMNS = ("loss", "token_accuracy", "grad_norm", "seconds")


def format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def format_numbers(numbers: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in numbers.items())


class Progress:
    """Context manager around work of `max_steps` steps (or what `unit` says), of which `first_step` are done already.

    columns: of a table of the newest steps (`show_step`), the most important first; those that do not fit into the
        terminal's width are dropped from the end. Without columns there is no table, and the numbers stand beside the bar.
    """

    def __init__(
        self, title: str, max_steps: int, first_step: int = 0, console: Console | None = None, *, unit: str = "step",
        columns: Sequence[str] = (), is_quiet: bool = False,
    ):  # fmt: skip
        self.title, self.max_steps, self.first_step, self.unit, self.columns = title, max_steps, first_step, unit, columns
        self.console = console or Console(stderr=True, highlight=False, quiet=is_quiet)
        self._start = self._last_line = time.monotonic()
        self._shown: dict[str, float] = {}
        self._rows: deque[dict[str, str]] = deque(maxlen=NUM_ROWS)
        self._evaluation = ""
        self._live: Live | None = None
        if self.console.is_terminal and not is_quiet:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(title, total=max_steps, completed=first_step, left="", numbers="")
            self._live = Live(console=self.console, get_renderable=self.render, refresh_per_second=4)

    def __enter__(self) -> Progress:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._live:
            self._live.stop()

    def show(self, num_steps: int, numbers: Mapping[str, float]) -> None:
        """After `num_steps` steps; `numbers` join those shown before."""
        self._shown.update(numbers)
        now = time.monotonic()
        rate = (now - self._start) / max(1, num_steps - self.first_step)
        left = f"at most {format_seconds(rate * (self.max_steps - num_steps))} left"
        text = format_numbers(self._shown)
        if self._live:
            beside = "" if self.columns else text
            self._bar.update(self._task, completed=num_steps, left=left, numbers=Text(beside, overflow="ellipsis"))
        elif now - self._last_line >= LINE_EVERY_S or num_steps == self.max_steps:
            self._last_line = now
            self.say(f"{self.title}: {self.unit} {num_steps}/{self.max_steps}, {left}, {text}")

    def show_step(self, step: int, metrics: Mapping[str, float], evaluation: Mapping[str, float]) -> None:
        """A row of the table; `evaluation` is what was measured after this step, or empty."""
        row = {name: f"{metrics[name]:.3g}" for name in self.columns if name in metrics}
        self._rows.append({self.unit: str(step), **row})
        if evaluation:
            self._evaluation = f"evaluation after {self.unit} {step}: {format_numbers(evaluation)}"

    def render(self) -> RenderableType:
        """Bar, table and newest evaluation, as they are in a terminal."""
        parts: list[RenderableType] = [self._bar]
        if self._rows:
            parts.append(self._table())
        if self._evaluation:
            parts.append(Text(self._evaluation, overflow="ellipsis", no_wrap=True))
        return Group(*parts)

    def _table(self) -> Table:
        table, left = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0)), self.console.width
        for name in (self.unit, *self.columns):
            cells = [row[name] for row in self._rows if name in row]
            width = max(map(len, (name, *cells)))
            if not cells:
                continue
            if width > left:
                break
            table.add_column(name, justify="right", width=width)
            left -= width + 2
        names = [str(column.header) for column in table.columns]
        for row in self._rows:
            table.add_row(*(row.get(name, "") for name in names))
        return table

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

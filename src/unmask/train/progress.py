"""Live progress of a run: a bar with the newest numbers in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

LINE_EVERY_S = 15.0


def format_seconds(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Progress:
    """Context manager around work of `max_steps` steps (or what `unit` says), of which `first_step` are done already."""

    def __init__(self, title: str, max_steps: int, first_step: int = 0, console: Console | None = None, *, unit: str = "step"):
        self.title, self.max_steps, self.first_step, self.unit = title, max_steps, first_step, unit
        self.console = console or Console(stderr=True, highlight=False)
        self._start = self._last_line = time.monotonic()
        self._shown: dict[str, float] = {}
        self._bar: Bar | None = None
        if self.console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(title, total=max_steps, completed=first_step, left="", numbers="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, num_steps: int, numbers: Mapping[str, float]) -> None:
        """After `num_steps` steps; `numbers` join those shown before."""
        self._shown.update(numbers)
        now = time.monotonic()
        rate = (now - self._start) / max(1, num_steps - self.first_step)
        left = f"at most {format_seconds(rate * (self.max_steps - num_steps))} left"
        text = "  ".join(f"{name} {value:.3g}" for name, value in self._shown.items())
        if self._bar:
            self._bar.update(self._task, completed=num_steps, left=left, numbers=Text(text, overflow="ellipsis"))
        elif now - self._last_line >= LINE_EVERY_S or num_steps == self.max_steps:
            self._last_line = now
            self.say(f"{self.title}: {self.unit} {num_steps}/{self.max_steps}, {left}, {text}")

    def say(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)

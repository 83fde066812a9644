"""An actor as the trainer sees it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True, eq=False)
class Member:
    """One actor. It is starting (`started` will be there), then idle, or busy with a task (`news` of it come)."""

    handle: Any
    started: Any
    is_ready: bool = False
    pid: int = 0
    version: int | None = None  # of the weights it was last sent
    task: list[int] = field(default_factory=list)  # numbers of prompts
    news: Any = None
    heard_at: float = 0.0

    @property
    def awaited(self) -> Any:
        return self.news if self.is_ready else self.started

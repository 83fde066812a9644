"""An engine that works for somebody else, in a thread or a process of its own: commands in, news out.

Between two forwards it takes what has come in; with nothing to do it waits. It owns the engine: nobody else may call it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from unmask.engine.engine import Engine
from unmask.engine.request import RequestOutput
from unmask.engine.stats import EngineStats
from unmask.errors import UnmaskError
from unmask.types import SamplingParams


@dataclass(slots=True)
class Add:
    """Decode a prompt. Answered by `Accepted` or `Refused`, then by outputs."""

    id: int
    prompt_ids: list[int]
    params: SamplingParams
    reports_steps: bool = False
    name: str = ""


@dataclass(slots=True)
class Abort:
    """Take a request out; one that has ended meanwhile is none of anybody's business any more. Not answered."""

    id: int


@dataclass(slots=True)
class Update:
    """New weights, from what `load` understands. Requests that have begun are finished with the old ones first; others wait.
    Answered by `Updated`."""

    source: Any
    policy_version: int | None = None


@dataclass(slots=True)
class Close:
    """Stop, whatever is in flight."""


@dataclass(slots=True)
class Accepted:
    id: int


@dataclass(slots=True)
class Refused:
    """is_fault: a defect, or the engine's failure, rather than a mistake in the request."""

    id: int
    message: str
    is_fault: bool = False


@dataclass(slots=True)
class Updated:
    """policy_version of the new weights; message: why there are none; is_fault: as in `Refused`."""

    policy_version: int
    message: str = ""
    is_fault: bool = False


@dataclass(slots=True)
class Snapshot:
    """How the engine stands: requests that wait in it and that run, pages in use and in all, counts so far."""

    num_waiting: int = 0
    num_running: int = 0
    num_pages_used: int = 0
    num_pages: int = 1
    stats: EngineStats = field(default_factory=EngineStats)


Command = Add | Abort | Update | Close
News = Accepted | Refused | RequestOutput | Updated | Snapshot


class Worker:
    """Runs an engine until it is told to stop.

    take: the commands that have come, in order; with True it waits until there is one. tell: gets the news of each forward.
    load: from an `Update.source` to weights for `Engine.update_weights`; it runs beside the decoding, in a thread.
    """

    def __init__(
        self, engine: Engine, take: Callable[[bool], list[Command]], tell: Callable[[list[News]], None],
        load: Callable[[Any], Any] = lambda source: source,
    ):  # fmt: skip
        self.engine, self._take, self._tell, self._load = engine, take, tell, load
        self._updates: list[Update] = []
        self._loading: _Loading | None = None

    def run(self) -> None:
        while True:
            news: list[News] = []
            # What is loaded is looked for between forwards; with nothing to decode, as soon as it is there.
            is_idle = not (self.engine.has_work or self._loading or self._updates)
            commands = self._take(is_idle)
            for command in commands:
                if isinstance(command, Close):
                    return
                self._do(command, news)
            self._move_updates_on(news)
            if self.engine.has_work:
                self._step(news)
            if news or commands:
                news.append(self.snapshot())
                self._tell(news)

    def snapshot(self) -> Snapshot:
        scheduler = self.engine.scheduler
        pool = scheduler.pool
        return Snapshot(
            len(scheduler.waiting),
            len(scheduler.running),
            pool.num_pages - pool.num_available,
            pool.num_pages,
            self.engine.stats,
        )

    def _do(self, command: Command, news: list[News]) -> None:
        if isinstance(command, Add):
            try:
                self.engine.add_request(
                    command.prompt_ids, command.params, command.id, name=command.name or "the request",
                    reports_steps=command.reports_steps,
                )  # fmt: skip
                news.append(Accepted(command.id))
            except UnmaskError as error:
                news.append(Refused(command.id, str(error)))
            except Exception as error:  # one request's; the others go on
                news.append(Refused(command.id, _describe(error), is_fault=True))
        elif isinstance(command, Abort):
            if command.id in self.engine.request_ids:
                self.engine.abort(command.id)
        elif isinstance(command, Update):
            self._updates.append(command)

    def _step(self, news: list[News]) -> None:
        try:
            news += self.engine.step(only_begun=self._is_draining)
        except Exception as error:  # outputs that are not finite, no memory: whoever is tried again would meet it again
            for request_id in list(self.engine.request_ids):
                self.engine.abort(request_id)
                news.append(Refused(int(request_id), _describe(error), is_fault=True))

    @property
    def _is_draining(self) -> bool:
        return self._loading is not None and self._loading.is_done.is_set() and not self._loading.error

    def _move_updates_on(self, news: list[News]) -> None:
        if self._loading is None and self._updates:
            self._loading = _Loading(self._updates.pop(0), self._load)
        loading = self._loading
        if loading is None:
            return
        if not self.engine.has_work:
            loading.is_done.wait(0.05)
        if not loading.is_done.is_set() or (loading.error is None and self.engine.has_begun):
            return
        try:
            if loading.error is None:
                self.engine.update_weights(loading.weights, policy_version=loading.update.policy_version)
        except Exception as error:
            loading.error = error
        self._loading = None
        message = "" if loading.error is None else _describe(loading.error)
        is_fault = not isinstance(loading.error, UnmaskError | None)
        news.append(Updated(self.engine.policy_version, message, is_fault))


class _Loading:
    """Weights on their way from where they lie, read in a thread."""

    def __init__(self, update: Update, load: Callable[[Any], Any]):
        self.update, self.weights, self.is_done = update, None, threading.Event()
        self.error: Exception | None = None

        def run() -> None:
            try:
                self.weights = load(update.source)
            except Exception as error:
                self.error = error
            self.is_done.set()

        threading.Thread(target=run, name="unmask-load", daemon=True).start()


def _describe(error: Exception) -> str:
    return str(error) if isinstance(error, UnmaskError) else f"{type(error).__name__}: {error}"

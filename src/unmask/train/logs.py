"""What a process of a run says of itself: RUN/logs/rank-R.jsonl, through the standard library's logging.

A line is a record of the logger "unmask" (or one below it), as JSON: `time` (UTC, ISO 8601 with milliseconds), `level`,
`message`, then the fields it was logged with, and `traceback` of an error. The file is appended to when a run is resumed.

    log = logging.getLogger(__name__)
    log.info("checkpoint", extra=fields(step=40))
"""

from __future__ import annotations

import logging
import os
import socket
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import torch

from unmask import __version__
from unmask.dist import Ranks
from unmask.errors import UnmaskError
from unmask.metrics import JsonlWriter, json_value

LOGS = "logs"
_LOGGER = logging.getLogger("unmask")


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` of a record."""
    return {"fields": values}


class RankLog(logging.Handler):
    """Keeps records until `open` says where they go, since a run's folder is not touched before it is known to be its own."""

    def __init__(self) -> None:
        super().__init__()
        self._file: JsonlWriter | None = None
        self._kept: list[dict[str, Any]] = []

    def open(self, folder: Path, ranks: Ranks, device: torch.device) -> None:
        """Logs the start of a run in this folder. Raises `UnmaskError`, as does logging from now on, where the file cannot be
        written."""
        self._file = JsonlWriter(folder / LOGS / f"rank-{ranks.rank}.jsonl")
        kept, self._kept = self._kept, []
        _LOGGER.info("start", extra=fields(
            unmask=__version__, host=socket.gethostname(), pid=os.getpid(), device=str(device), rank=ranks.rank,
            num_ranks=ranks.size, recipe=str(folder / "recipe.toml"),
        ))  # fmt: skip
        for line in kept:
            self._file.write(line)

    def emit(self, record: logging.LogRecord) -> None:
        if self._file is None:
            self._kept.append(as_line(record))
        else:
            self._file.write(as_line(record))

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def as_line(record: logging.LogRecord) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    values = {name: json_value(value) for name, value in getattr(record, "fields", {}).items()}
    line = {"time": time, "level": record.levelname.lower(), "message": record.getMessage(), **values}
    if record.exc_info and record.exc_info[1] is not None:
        line["traceback"] = "".join(traceback.format_exception(record.exc_info[1]))
    return line


@contextmanager
def rank_log() -> Iterator[RankLog]:
    """Collects what is logged in this block, Python's warnings (which are shown as ever) and what ends it."""
    handler, level, propagates, show = RankLog(), _LOGGER.level, _LOGGER.propagate, warnings.showwarning

    def show_and_log(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: TextIO | None = None,
        line: str | None = None,
    ) -> None:  # fmt: skip
        show(message, category, filename, lineno, file, line)
        _LOGGER.warning(f"{category.__name__}: {message}", extra=fields(where=f"{filename}:{lineno}"))

    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False  # what is for people has been said on the console
    warnings.showwarning = show_and_log
    try:
        yield handler
    except BaseException as error:
        with suppress(UnmaskError):  # a full disk, for one, must not hide the error
            _LOGGER.error(f"{type(error).__name__}: {error}", exc_info=error)
        raise
    finally:
        warnings.showwarning = show
        _LOGGER.propagate = propagates
        _LOGGER.setLevel(level)
        _LOGGER.removeHandler(handler)
        handler.close()

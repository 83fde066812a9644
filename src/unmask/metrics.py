"""Metrics of a run, as JSON lines.

`metrics.jsonl` holds only what follows from the recipe: killed and resumed, it is byte for byte that of an
uninterrupted run. Wall-clock times go to `timings.jsonl`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.files import describe_os_error


def json_value(value: Any) -> Any:
    """The value, or a float that JSON has no word for as text ("nan", "inf", "-inf")."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


class JsonlWriter:
    """Appends records to a file, one unbuffered line at a time; can be cut back to an earlier length."""

    def __init__(self, path: Path):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise describe_os_error(error, path) from error

    def write(self, record: Mapping) -> None:
        """Writes the whole line or (disk full) nothing of it. Raises `UnmaskError`."""
        line, start = (json.dumps(record, allow_nan=False) + "\n").encode(), self.size()
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
        except OSError as error:
            os.ftruncate(self._descriptor, start)
            raise describe_os_error(error, self.path) from error

    def sync(self) -> int:
        """Makes all lines durable; returns the length in bytes, to be kept in a checkpoint. Raises `UnmaskError`."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise describe_os_error(error, self.path) from error
        return self.size()

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def truncate(self, size: int) -> None:
        """Cuts the file to what the checkpoint knew (lines written after it will be written again).

        Raises `UnmaskError` when that is not there any more: the file is shorter, or has other lines.
        """
        kept = self.path.read_bytes()[:size]
        if len(kept) < size or not (size == 0 or kept.endswith(b"\n")):
            raise UnmaskError(f"{self.path}: is not the file this run wrote (its checkpoint knows {size} bytes of whole lines)")
        os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        os.close(self._descriptor)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """All records of a run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]

"""Rows of a parquet file, one after the other or any of them. The one importer of pyarrow (extra `data`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from unmask.errors import UnmaskError
from unmask.files import describe_os_error, new_file

_BATCH_SIZE = 1024  # rows that are decoded together


def scan_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yields every row. Raises `UnmaskError` for a file that cannot be read, or where pyarrow is not installed."""
    with _opened(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH_SIZE):
            yield from batch.to_pylist()


class ArrowRows:
    """Any row of a parquet file, through a copy in Arrow's own format that is mapped into memory: what is asked for is read,
    and the system may forget it again.

    copy: where this is, or else is written. Raises `UnmaskError`.
    """

    def __init__(self, path: Path, copy: Path):
        pyarrow = _pyarrow(path)
        if not copy.exists():
            with (
                _opened(path) as file,
                new_file(copy) as temporary,
                pyarrow.ipc.new_file(str(temporary), file.schema_arrow) as writer,
            ):
                for batch in file.iter_batches(batch_size=_BATCH_SIZE):
                    writer.write_batch(batch)
        try:
            self._reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(copy)))
            sizes = [self._reader.get_batch(i).num_rows for i in range(self._reader.num_record_batches)]
        except (pyarrow.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UnmaskError(f"{copy}: not a whole copy of {path} ({reason}); remove it, and it is made again") from None
        self._ends = np.cumsum(sizes, dtype=np.int64)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(len(self._ends)):
            yield from self._reader.get_batch(i).to_pylist()

    def __getitem__(self, index: int) -> dict[str, Any]:
        batch = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[batch - 1]) if batch else 0
        rows: list[dict[str, Any]] = self._reader.get_batch(batch).slice(index - first, 1).to_pylist()
        return rows[0]


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise UnmaskError(f"{path}: parquet needs pyarrow, which is not installed: pip install 'unmask[data]'") from None
    return pyarrow


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file; what goes wrong while it is read is an `UnmaskError`."""
    pyarrow = _pyarrow(path)
    if not path.is_file():
        raise UnmaskError(f"{path}: no such file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except pyarrow.ArrowException as error:
        raise UnmaskError(f"{path}: not a complete parquet file ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise describe_os_error(error, path) from error

"""Rows of a parquet file. The one importer of pyarrow (extra `data`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.files import describe_os_error


def scan_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """Yields every row. Raises `UnmaskError` for a file that cannot be read, or where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UnmaskError(f"{path}: parquet needs pyarrow, which is not installed: pip install 'unmask[data]'") from None
    if not path.is_file():
        raise UnmaskError(f"{path}: no such file")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except pyarrow.ArrowException as error:
        raise UnmaskError(f"{path}: not a complete parquet file ({str(error).splitlines()[0]})") from None
    except OSError as error:
        raise describe_os_error(error, path) from error

"""Where rows come from: files, folders and data sets on the hub, as JSON lines, JSON arrays or parquet."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from unmask.data.parquet import scan_parquet
from unmask.errors import UnmaskError
from unmask.files import describe_os_error, read_json_value, scan_jsonl
from unmask.models.hub import fetch_snapshot, is_hub_name

Split = Literal["train", "held_out"]

ENDINGS = (".jsonl", ".json", ".parquet")
_ABOUT_DATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")  # beside the rows, no rows
_TRAIN_WORDS = {"train", "training"}
_HELD_OUT_WORDS = {"test", "held", "heldout", "eval", "validation", "valid", "val", "dev"}


class NoRowsError(UnmaskError):
    """A source has no rows of a split; it may have some of the other one."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file of rows. `name`: within its folder or repository. `split`: the one all its rows belong to, if that is known."""

    path: Path
    name: str
    split: Split | None = None


def find_files(location: str, revision: str = "") -> list[DataFile]:
    """The files of rows at a location, in the order of their names; at least one.

    location: a file, a folder (files at any depth) or a data set on the hub, `owner/name` or `owner/name:PATTERN`, where the
    pattern (`*` matches slashes, too) chooses files. What exists locally wins. Raises `UnmaskError`.
    """
    path = Path(location).expanduser()
    if path.is_file():
        return [DataFile(path, path.name)]
    if path.is_dir():
        files = _files_below(path, "*")
        if not files:
            raise UnmaskError(f"{location}: no file of rows in this folder ({', '.join(ENDINGS)})")
        return files
    if not on_hub(location):
        hint = "" if path.is_absolute() else " (and not a data set on the hub, owner/name or owner/name:PATTERN)"
        raise UnmaskError(f"{location}: no such file{hint}")
    name, _, pattern = location.partition(":")
    patterns = [pattern] if pattern else [f"*{ending}" for ending in ENDINGS]
    folder = fetch_snapshot(name, revision or None, patterns, "file or folder", repo_type="dataset")
    files = _files_below(folder, pattern or "*")
    if not files:
        wanted = pattern or f"files of rows ({', '.join(ENDINGS)})"
        raise UnmaskError(
            f"{name}: no {wanted} here: the repository has none, or they were not fetched yet and there is no connection "
            f"({folder})"
        )
    return files


def on_hub(location: str) -> bool:
    """Whether a location means a data set on the hub (and nothing local)."""
    name, colon, _ = location.partition(":")
    is_file_name = not colon and name.endswith(ENDINGS)
    return not Path(location).expanduser().exists() and is_hub_name(name) and not is_file_name


def split_of_name(name: str) -> Split | None:
    """The published split that a file's name speaks of: a word `train`, or `test`, `validation` and the like."""
    words = set(re.split(r"[^a-z]+", name.lower()))
    is_train, is_held_out = bool(words & _TRAIN_WORDS), bool(words & _HELD_OUT_WORDS)
    if is_train == is_held_out:
        return None
    return "train" if is_train else "held_out"


def scan_rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any] | UnmaskError]]:
    """Yields (number, where, row) for every row, for a malformed one what is wrong with it.

    Numbers and names: lines count from 1 (`FILE:LINE`), elements of an array and rows of parquet from 0 (`FILE[INDEX]`).
    Raises `UnmaskError` for a file that cannot be read.
    """
    if path.suffix == ".parquet":
        yield from ((i, f"{path}[{i}]", row) for i, row in enumerate(scan_parquet(path)))
    elif path.suffix == ".json" and begins_an_array(path):
        for i, row in enumerate(read_json_value(path)):
            where = f"{path}[{i}]"
            is_row = isinstance(row, dict)
            yield i, where, row if is_row else UnmaskError(f"{where}: expected a JSON object, found {type(row).__name__}")
    else:
        yield from ((number, f"{path}:{number}", row) for number, row in scan_jsonl(path))


def begins_an_array(path: Path) -> bool:
    """Whether a file of JSON is one array of rows, and not lines. Raises `UnmaskError`."""
    try:
        with open(path, "rb") as file:
            return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except OSError as error:
        raise describe_os_error(error, path) from error


def _files_below(folder: Path, pattern: str) -> list[DataFile]:
    found = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_hidden = any(part.startswith(".") for part in Path(name).parts)
        if path.suffix in ENDINGS and path.name not in _ABOUT_DATA and not is_hidden and fnmatch(name, pattern):
            found.append(DataFile(path, name))
    return found

"""Reading and writing files so that a crash or a full disk leaves nothing half-written, and bad input is named."""

from __future__ import annotations

import codecs
import ctypes
import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError


def describe_os_error(error: OSError, path: Path | str) -> UnmaskError:
    """One line for what the operating system refused."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UnmaskError(f"{path}: the disk is full (nothing half-written was left); free space and run again")
    return UnmaskError(f"{path}: {error.strerror or error}")


def describe_write_error(error: Exception, path: Path) -> Exception:
    """What to raise for an error while writing below `path`.

    Libraries that write in C++ or Rust report a full disk as errors of their own kind: then the free space tells.
    """
    if isinstance(error, OSError):
        return describe_os_error(error, path)
    if isinstance(error, UnmaskError):
        return error
    try:
        is_full = shutil.disk_usage(path.parent).free < 2**20
    except OSError:
        is_full = False
    return describe_os_error(OSError(errno.ENOSPC, ""), path) if is_full else error


def write_text(path: Path, text: str) -> None:
    """Writes to a temporary name beside `path`, syncs and renames. Raises `UnmaskError` for a full disk and the like."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def replace_link(path: Path, target: str) -> None:
    """Makes `path` a symbolic link, atomically, in place of an older one. Raises `UnmaskError`."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)
        os.symlink(target, temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise describe_os_error(error, path) from error


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; when the block ends without an error the file is synced and renamed to `path`."""
    # Processes of other machines may have the same number.
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
    except Exception as error:
        raise describe_write_error(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path, marker: str = "config.json", replaces: Callable[[str], bool] = lambda name: True) -> Iterator[Path]:
    """Yields a temporary folder; when the block ends without an error its files are synced and it becomes `path`.

    An existing folder at `path` is replaced if it is empty or holds `marker` (it is one of ours); any other is refused.
    Entries of the old folder for whose name `replaces` is false come along. Where the system can swap two names (Linux, most
    file systems), the old or the new folder is there at every moment; elsewhere there is none between two renames.
    """
    check_replaceable(path, marker)
    path = Path(os.path.realpath(path))  # the folder a link points to, not the link
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _sync(Path(folder, name))
        if path.exists():
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
            for entry in path.iterdir():
                if not replaces(entry.name) and not os.path.lexists(temporary / entry.name):
                    _link(entry, temporary / entry.name)
        for folder, _, _ in os.walk(temporary):
            _sync(Path(folder))
        _take_place(temporary, path)
        _sync(path.parent)
    except Exception as error:
        raise describe_write_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(path: Path, marker: str = "config.json") -> None:
    """Raises `UnmaskError` if there is something at `path` that `new_folder` would not replace."""
    if path.exists() and not (path.is_dir() and ((path / marker).exists() or not any(path.iterdir()))):
        raise UnmaskError(f"{path}: exists and is not a folder with {marker}; it is not replaced, choose another name")
    if path.is_dir() and Path.cwd().is_relative_to(path.resolve()):
        raise UnmaskError(f"{path}: the current folder is in it and would be gone; call from elsewhere, or choose another name")


def _link(source: Path, target: Path) -> None:
    """The same files at a second place; no copies where the file system can do without."""

    def link(a: str, b: str) -> None:
        try:
            os.link(a, b, follow_symlinks=False)
        except OSError:
            shutil.copy2(a, b, follow_symlinks=False)

    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, copy_function=link, symlinks=True)
    else:
        link(str(source), str(target))


def _take_place(temporary: Path, path: Path) -> None:
    """Renames; where something is at `path`, it is at `temporary` afterwards."""
    if not path.exists():
        os.rename(temporary, path)
        return
    if _exchange(temporary, path):
        return
    old = temporary.with_name(temporary.name + "-old")
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(old, path)
        raise
    os.rename(old, temporary)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two names in one step. False where the system or the file system cannot (then nothing was done)."""
    at_cwd, rename_exchange = -100, 2  # linux/fcntl.h, linux/fs.h
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return rename(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), rename_exchange) == 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal. Raises `OSError`."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises `UnmaskError` naming the file (and line) that is missing or malformed."""
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise UnmaskError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_json_value(path: Path) -> Any:
    """What a file of JSON holds. Raises `UnmaskError` like `read_json`."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UnmaskError(f"{path}: no such file") from None
    except OSError as error:
        raise describe_os_error(error, path) from error
    except UnicodeDecodeError:
        raise UnmaskError(f"{path}: not UTF-8 text") from None
    except json.JSONDecodeError as error:
        raise UnmaskError(f"{path}:{error.lineno}: not valid JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise UnmaskError(f"{path}: not usable JSON ({error})") from None


def scan_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | UnmaskError]]:
    """Yields (line number, object) for every non-empty line, for a malformed one what is wrong with it.

    Raises `UnmaskError` for a file that cannot be read.
    """
    yield from ((number, value) for number, _, value in locate_jsonl(path))


def locate_jsonl(path: Path) -> Iterator[tuple[int, int, dict[str, Any] | UnmaskError]]:
    """The same with where each line begins: (line number, bytes before it, object)."""
    offset = 0
    try:
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                value = _read_line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, f"{path}:{number}")
                if value is not None:
                    yield number, offset, value
                offset += len(line)
    except FileNotFoundError:
        raise UnmaskError(f"{path}: no such file") from None
    except OSError as error:
        raise describe_os_error(error, path) from error


def read_jsonl_at(path: Path, number: int, offset: int) -> dict[str, Any] | UnmaskError | None:
    """The line that begins at `offset`, as `locate_jsonl` has it; None for an empty one. Raises `UnmaskError`."""
    try:
        with open(path, "rb") as lines:
            lines.seek(offset)
            line = lines.readline()
    except OSError as error:
        raise describe_os_error(error, path) from error
    return _read_line(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, f"{path}:{number}")


def _read_line(line: bytes, where: str) -> dict[str, Any] | UnmaskError | None:
    """What a line holds, or what is wrong with it; None for an empty one."""
    if not line.strip():
        return None
    try:
        value = json.loads(line.rstrip().decode("utf-8"))  # without its end, a torn line's column is its length
    except UnicodeDecodeError:
        return UnmaskError(f"{where}: not UTF-8 text")
    except json.JSONDecodeError as error:
        return UnmaskError(f"{where}: not valid JSON ({error.msg}, column {error.colno})")
    except (ValueError, RecursionError) as error:
        return UnmaskError(f"{where}: not usable JSON ({error})")
    if not isinstance(value, dict):
        return UnmaskError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields ("file:line", object) for every non-empty line. Raises `UnmaskError` naming the malformed line."""
    for number, value in scan_jsonl(path):
        if isinstance(value, UnmaskError):
            raise value
        yield f"{path}:{number}", value

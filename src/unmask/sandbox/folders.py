"""The folder of a program that has no file system of its own: made by the caller, removed whatever is in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat


def remove(folder: str) -> None:
    """Removes a folder that nobody writes to any more, however deep it is nested and whatever its modes; follows no link.

    What belongs to somebody else stays, and so does the folder then. Without recursion: folders are moved up before.
    """
    with contextlib.suppress(OSError):
        root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            numbers = itertools.count()
            while sum(_remove_entry(root, name, numbers) for name in os.listdir(root)):
                pass
        finally:
            os.close(root)
        os.rmdir(folder)


def _remove_entry(root: int, name: str, numbers: itertools.count[int]) -> bool:
    """Of `root`. True if something has changed."""
    with contextlib.suppress(OSError):
        if not stat.S_ISDIR(os.lstat(name, dir_fd=root).st_mode):
            os.unlink(name, dir_fd=root)
            return True
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=root)
            return True
        _open_up(root, name)
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        try:
            for child in os.listdir(folder):
                _open_up(folder, child)
                os.rename(child, f"{os.urandom(8).hex()}-{next(numbers)}", src_dir_fd=folder, dst_dir_fd=root)
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=root)
        return True
    return False


def _open_up(parent: int, name: str) -> None:
    """So that this folder can be moved and listed."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
            os.chmod(name, 0o700, dir_fd=parent)

"""Whatever a program leaves in its folder goes with it."""

from __future__ import annotations

import os
from pathlib import Path

from unmask.sandbox import folders


def test_deep_locked_and_linked(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "outside"
    folder.mkdir()
    outside.mkdir()
    (outside / "file").write_text("stays")
    (folder / "link").symlink_to(outside)
    (folder / "fifo").parent.joinpath("many").mkdir()
    for i in range(100):
        (folder / "many" / str(i)).mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "locked" / "in" / "it").mkdir(parents=True)
    (folder / "locked" / "in" / "file").touch()
    for name in ("locked/in", "locked"):
        (folder / name).chmod(0)
    here = os.getcwd()
    os.chdir(folder)
    try:
        for _ in range(2500):  # deeper than a recursion, and longer than a path may be
            os.mkdir("deep")
            os.chdir("deep")
    finally:
        os.chdir(here)
    folders.remove(str(folder))
    assert not folder.exists()
    assert (outside / "file").read_text() == "stays"


def test_nothing_there(tmp_path: Path) -> None:
    folders.remove(str(tmp_path / "nothing"))
    (tmp_path / "link").symlink_to(tmp_path)
    folders.remove(str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()

"""Trees of processes; and what is never ended: everything of root's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unmask.sandbox import processes


@pytest.mark.parametrize("users", [(0, 0, 0), (1000, 1000, 0), (0, 1000, 1000)])
def test_nothing_of_roots_is_ended_as_a_whole(monkeypatch: pytest.MonkeyPatch, users: tuple[int, int, int]) -> None:
    """Should the set-up fail before rights are dropped, a signal to everyone would be one to the whole machine."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    monkeypatch.setattr(os, "getresuid", lambda: users)
    with pytest.raises(ValueError, match="nothing of root's"):
        processes.end_all(-1, [], is_last_user=True)
    assert sent == []


def test_a_tree_of_any_depth(tmp_path: Path) -> None:
    """A program that forks and forks again: what ends it must not end first."""
    for pid in range(1, 1200):
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(f"{pid + 1} ")
    proc = os.open(tmp_path, os.O_RDONLY)
    try:
        assert list(processes._tree(proc, 1)) == list(range(1, 1201))
    finally:
        os.close(proc)

"""Model folders to serve, the command as a process of its own, and the server in a thread where that is quicker."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.serve.models import KINDS, save_tiny
from tests.serve.running import Local, Served


@pytest.fixture(autouse=True)
def _only_here(monkeypatch) -> None:
    """Keys that happen to be in the environment are not the server's."""
    for name in ("UNMASK_API_KEYS", "UNMASK_ADMIN_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A model folder of each kind of attention."""
    root = tmp_path_factory.mktemp("served")
    return {kind: save_tiny(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def served(folders) -> Served:
    """`unmask serve` on a free port."""
    assert "UNMASK_API_KEYS" not in os.environ
    with Served(folders["sdar"], "engine.num_pages=2000", "engine.page_size=4") as running:
        yield running
        running.assert_idle()


@pytest.fixture(scope="module")
def local(folders) -> Local:
    with Local(folders["sdar"], num_pages=2000, page_size=4) as running:
        yield running
        running.assert_idle()

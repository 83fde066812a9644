"""What the tests of several commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recipes import RL, SFT, unmask, write_recipe


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished RL run on top of an SFT run."""
    folder = tmp_path_factory.mktemp("trained")
    sft, rl = write_recipe(folder, "sft", SFT), write_recipe(folder, "rl", RL)
    assert unmask("sft", sft, f"run.dir={folder / 'sft'}").returncode == 0
    words = ["model.preset=''", f"model.path={folder / 'sft'}", "train.max_steps=3"]
    result = unmask("rl", rl, f"run.dir={folder / 'rl'}", *words)
    assert result.returncode == 0, result.stderr
    return folder

"""A saved model to load, damage and save over."""

from __future__ import annotations

import json

import pytest

from tests.conftest import make_model
from unmask.models.checkpoint import save_model


@pytest.fixture
def saved(tmp_path):
    save_model(make_model(), tmp_path / "model")
    return tmp_path / "model"


def set_config(folder, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))

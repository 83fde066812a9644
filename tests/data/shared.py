"""Where the benchmark data is, and writing rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unmask.config import Plugin
from unmask.data.sources import open_source

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"benchmark data is not at {SHARED}")


def write_rows(path: Path, rows: list) -> str:
    """JSON lines, or for the ending .json an array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def examples(name: str, split: str = "train", **options) -> list:
    source = open_source(Plugin(name=name, options=options), split, 0)
    return [source[i] for i in range(len(source))]


def questions(num: int) -> list[dict]:
    """Rows of the published layout, with responses."""
    return [
        {"question": f"What is {i} + 1?", "ground_truth_answer": str(i + 1), "response": f"It is {i + 1}."} for i in range(num)
    ]

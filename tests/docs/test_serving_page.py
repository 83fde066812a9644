"""The page on serving does what it says: its Python blocks are run, in order, against a server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, code_blocks
from tests.serve.models import save_tiny
from tests.serve.running import Served

PAGE = ROOT / "docs" / "serving.md"


def test_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict = {}
    with Served(save_tiny(tmp_path / "model")) as served:
        for block in code_blocks(PAGE):
            if block.language == "python":
                text = block.text.replace("http://127.0.0.1:8000", f"http://{served._address()}")
                exec(compile("\n" * (block.line - 1) + text, str(PAGE), "exec"), names)
        names["client"].close()
    assert names["answer"].usage.tokens_per_forward > 0
    assert [len(trace.prompt_ids) for trace in names["traces"]] == [3, 2, 1]
    assert "[(0, '" in capsys.readouterr().out

"""The `>>>` examples on the pages give what is printed below them."""

from __future__ import annotations

import doctest
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, code_blocks

WITH_EXAMPLES = [page for page in PAGES if any(block.language == "pycon" for block in code_blocks(page))]


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: page.stem)
def test_examples(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}  # blocks of a page go on where the one before stopped
    report: list[str] = []
    for block in code_blocks(page):
        if block.language == "pycon":
            examples = doctest.DocTestParser().get_doctest(block.text, names, page.name, str(page), block.line - 1)
            doctest.DocTestRunner(verbose=False).run(examples, out=report.append, clear_globs=False)
            names = examples.globs
    assert not report, "".join(report)


def test_the_method_has_a_worked_example() -> None:
    assert ROOT / "docs" / "tracerl.md" in WITH_EXAMPLES

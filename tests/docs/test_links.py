"""Links between pages lead somewhere, and files that a page names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.blocks import PAGES, ROOT, without_code


def anchors(page: Path) -> set[str]:
    """What a heading is called in a link: GitHub's rule."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_named_files(page: Path) -> None:
    """`src/...`, `tests/...` and so on in backticks; capitals stand for a name to be chosen."""
    named = re.findall(r"`((?:src|tests|docs|recipes|scripts)/[\w./-]*)`", without_code(page))
    assert [name for name in named if "NAME" not in name and not (ROOT / name).exists()] == []

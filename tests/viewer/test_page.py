from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from unmask.viewer import (
    Chart,
    Comparison,
    Detail,
    KeyFigure,
    ReferenceLine,
    Report,
    Series,
    Table,
    render_live,
    render_player,
    render_report,
)  # fmt: skip
from unmask.viewer.page import embed_json, escape_text

HOSTILE = [
    "</script><script>alert(1)</script>",
    "\u2028\u2029",
    "<!--<script>",
    "&lt;",
    "\ud800",
    "<img src=x onerror=alert(2)>",
]


class Structure(HTMLParser):
    """Elements of a page, and the text of its JSON scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.json: dict[str, object] = {}
        self.open_json: str | None = None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open_json = dict(attrs).get("id") if ("type", "application/json") in attrs else None

    def handle_data(self, data):
        if self.open_json:
            self.json[self.open_json] = json.loads(data)
            self.open_json = None


@pytest.fixture
def report(make_record) -> Report:
    return Report(
        "A report", ["Headline.", "More words."],
        [KeyFigure("Accuracy", "96 %", "31 % before")],
        [Table("Before and after", ["model", "accuracy", "remark"], [["old", "31 %", "slow"], ["new", 0.96, "fast"]])],
        [Chart("Accuracy", "step", "share", [Series("a", [0, 1], [0.3, 0.9])], (0, 1), ReferenceLine(0.8, "target"))],
        Comparison([make_record(per_step=1)], [make_record()], ("Before RL", "After RL")),
        [Detail("Recipe", "lr = 1e-3\n")],
    )  # fmt: skip


LIVE = {"model_name": "tiny", "attention": "block_causal", "block_size": 4}


@pytest.fixture(params=["player", "compare", "report", "live"])
def page(request, make_record, report) -> str:
    if request.param == "live":
        return render_live("Live", **LIVE, defaults={"seed": None})
    if request.param == "report":
        return render_report(report)
    return render_player([make_record()], "Traces", [make_record()] if request.param == "compare" else None)


def test_nothing_is_loaded(page):
    for word in ("http://", "https://", "src=", "@import", "url(", '<link rel="stylesheet'):
        assert word not in page


def test_only_the_page_of_a_server_may_talk_and_only_to_it(page):
    is_live = 'id="ask"' in page
    assert ("connect-src 'self'" in page, "connect-src 'none'" in page) == (is_live, not is_live)
    assert page.count("fetch(") == (1 if is_live else 0)
    assert 'fetch("v1/chat/completions"' in page or not is_live
    assert not re.search("XMLHttpRequest|WebSocket|EventSource|sendBeacon|localStorage|sessionStorage|cookie", page)


def test_policy_allows_exactly_the_pages_own_script(page):
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; script-src 'sha256-{digest}';" in page
    assert len(re.findall(r"<script>", page)) == 1


def test_structure(page):
    tags = Structure(page).tags
    assert [tags.count(tag) for tag in ("html", "head", "main", "h1", "template", "noscript")] == [1] * 6
    assert '<html lang="en">' in page
    assert 'content="width=device-width, initial-scale=1"' in page


def test_no_markup_from_text_in_the_scripts(page):
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in page


def test_embedded_json_cannot_end_its_element():
    element = embed_json({"pieces": HOSTILE}, "data")
    inside = element.removeprefix('<script type="application/json" id="data">').removesuffix("</script>")
    assert json.loads(inside) == {"pieces": HOSTILE}
    assert inside.isascii()
    assert not set("<>&") & set(inside)
    with pytest.raises(ValueError, match="JSON"):
        embed_json([float("nan")], "data")


def test_hostile_pieces_come_back_unchanged(make_record):
    page = render_player([make_record("x", pieces=HOSTILE)], "<script>alert(3)</script>")
    page.encode("utf-8")
    structure = Structure(page)
    assert structure.json["player-data"]["records"][0]["canvas_pieces"] == HOSTILE
    assert structure.tags.count("script") == 2
    assert "img" not in structure.tags
    assert "alert(1)</script>" not in page


def test_a_live_page_escapes_what_it_is_told():
    page = render_live(HOSTILE[0], model_name=HOSTILE[5], attention=HOSTILE[5], block_size=4, defaults={"seed": HOSTILE[0]})
    structure = Structure(page)
    assert (structure.tags.count("script"), structure.tags.count("img")) == (3, 0)
    assert structure.json["live-data"] == {"defaults": {"seed": HOSTILE[0]}}


def test_escape_text():
    assert escape_text('<a b="c">&\ud800') == "&lt;a b=&quot;c&quot;&gt;&amp;?"


def test_every_text_of_a_report_is_escaped(make_record):
    bad = '<img onerror=1>"'
    page = render_report(
        Report(
            bad, [bad, bad], [KeyFigure(bad, bad, bad)], [Table(bad, [bad], [[bad]], bad)],
            [Chart(bad, bad, bad, [Series(bad, [0, 1], [0, 1])], None, ReferenceLine(1, bad), bad)],
            Comparison([make_record()], [make_record()], (bad, bad), bad, bad), [Detail(bad, bad)],
        )
    )  # fmt: skip
    assert "img" not in Structure(page).tags
    assert bad not in page


def test_report_parts_in_order_and_empty_parts_left_out(report):
    page = render_report(report)
    places = [
        page.index(f">{word}<") for word in ("Headline.", "96 %", "Before and after", "Curves", "Watch it decode", "Recipe")
    ]
    assert places == sorted(places)
    bare = render_report(Report("Bare", ["Only words."]))
    assert Structure(bare).tags.count("section") == 0
    assert "figures" not in bare.split("</style>")[1]


def test_columns_of_numbers_are_set_to_the_right(report):
    page = render_report(report)
    assert '<td class="number">31 %</td><td>slow</td>' in page
    assert '<td class="number">0.96</td><td>fast</td>' in page
    exponents = render_report(Report("r", [], (), [Table("t", ["a", "b"], [["x", "−8.86e−05"], ["y", "1.4e+07"]])]))
    assert '<td class="number">−8.86e−05</td>' in exponents
    with pytest.raises(ValueError, match="3 columns and a row of 1"):
        Table("t", ["a", "b", "c"], [["x"]])


def test_importing_the_viewer_leaves_torch_unloaded():
    code = "import sys, unmask.viewer; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

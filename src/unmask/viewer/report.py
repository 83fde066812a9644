"""The report of a training demonstration: what was reached, the curves, and the player with before beside after."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from unmask.types import TraceRecord
from unmask.viewer.charts import Chart, render_chart
from unmask.viewer.page import escape_text, render_page
from unmask.viewer.player import DEFAULT_LABELS, PLAYER_SCRIPTS, PLAYER_STYLES, player_data, player_html

# What a column of numbers looks like once formatted: "95.3 %", "+1.2", "3.1 ± 0.2", "1,204", "2.4×", "12 s", "1e−05", "–".
_NUMBER = re.compile(
    r"\s*([+−-]?[\d.,]+(e[+−-]?\d+)?\s*([×x%]|[a-zµ]{1,3}(/[a-z]{1,7})?)?(\s*±\s*[\d.,]+\s*%?)?|[–-]?)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class KeyFigure:
    """One number in large type: `KeyFigure("Accuracy", "96 %", "31 % before RL")`."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of formatted cells; the first column heads its row. Columns that hold only numbers are set to the right.

    Raises `ValueError` where a row has another number of cells than there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r} has {len(self.columns)} columns and a row of {len(row)}: {row!r}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Traces of two models on the same questions, paired by record id (see `render_player`)."""

    before: Sequence[TraceRecord]
    after: Sequence[TraceRecord]
    labels: tuple[str, str] = DEFAULT_LABELS
    title: str = "Watch it decode"
    text: str = ""


@dataclass(frozen=True, slots=True)
class Detail:
    """Preformatted text that opens on demand: a resolved recipe, versions, a log."""

    summary: str
    text: str


@dataclass(frozen=True, slots=True)
class Report:
    """Everything on the page, in its order; empty parts are left out.

    Attributes:
        title: heading of the page.
        paragraphs: plain words, plain text; the first is the headline and is set larger.
        key_figures: the few numbers to remember.
        tables: e.g. before and after.
        charts: the curves of the training.
        comparison: the traces for the player.
        details: for whoever wants to repeat it.
    """

    title: str
    paragraphs: Sequence[str]
    key_figures: Sequence[KeyFigure] = ()
    tables: Sequence[Table] = ()
    charts: Sequence[Chart] = ()
    comparison: Comparison | None = None
    details: Sequence[Detail] = ()


def render_report(report: Report) -> str:
    """The report as a self-contained HTML document that loads nothing.

    Raises `UnmaskError` where the comparison holds no records or no pair (see `render_player`).
    """
    sections = [
        _header(report),
        _key_figures(report.key_figures),
        *[_table(table) for table in report.tables],
        _charts(report.charts),
        _comparison(report.comparison),
        _details(report.details),
        "<footer>This page is a single file and loads nothing from the network.</footer>",
    ]
    return render_page(
        report.title,
        f'<main class="report">{"".join(sections)}</main>',
        styles=(*PLAYER_STYLES, "report.css"),
        scripts=(*PLAYER_SCRIPTS, "charts.js"),
    )


def _header(report: Report) -> str:
    paragraphs = "".join(
        f'<p class="lead">{escape_text(text)}</p>' if i == 0 else f"<p>{escape_text(text)}</p>"
        for i, text in enumerate(report.paragraphs)
    )
    return f'<header class="prose"><h1>{escape_text(report.title)}</h1>{paragraphs}</header>'


def _key_figures(figures: Sequence[KeyFigure]) -> str:
    if not figures:
        return ""
    cards = "".join(
        f'<div><dt>{escape_text(figure.label)}</dt><dd class="value">{escape_text(figure.value)}</dd>'
        + (f'<dd class="note">{escape_text(figure.note)}</dd>' if figure.note else "")
        + "</div>"
        for figure in figures
    )
    return f'<dl class="figures">{cards}</dl>'


def _table(table: Table) -> str:
    cells = [[str(cell) for cell in row] for row in table.rows]
    classes = [
        ' class="number"' if i > 0 and cells and all(_NUMBER.fullmatch(row[i]) for row in cells) else ""
        for i in range(len(table.columns))
    ]
    head = "".join(f'<th scope="col"{c}>{escape_text(name)}</th>' for c, name in zip(classes, table.columns, strict=True))
    body = ""
    for row in cells:
        body += "<tr>"
        for i, (c, cell) in enumerate(zip(classes, row, strict=True)):
            body += f'<th scope="row">{escape_text(cell)}</th>' if i == 0 else f"<td{c}>{escape_text(cell)}</td>"
        body += "</tr>"
    title = escape_text(table.title)
    return (
        f'<section><h2>{title}</h2><div class="scroll" tabindex="0" role="region" aria-label="{title}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        + (f'<p class="caption">{escape_text(table.caption)}</p>' if table.caption else "")
        + "</section>"
    )


def _charts(charts: Sequence[Chart]) -> str:
    if not charts:
        return ""
    figures = "".join(render_chart(chart, f"chart-{i}") for i, chart in enumerate(charts))
    return f'<section><h2>Curves</h2><div class="charts {"many" if len(charts) > 1 else "one"}">{figures}</div></section>'


def _comparison(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    text = f'<p class="prose">{escape_text(comparison.text)}</p>' if comparison.text else ""
    data = player_data(comparison.before, comparison.after, comparison.labels, name=comparison.labels[0])
    player = player_html(data, keys="player")
    return f"<section><h2>{escape_text(comparison.title)}</h2>{text}{player}</section>"


def _details(details: Sequence[Detail]) -> str:
    if not details:
        return ""
    blocks = "".join(
        f"<details><summary>{escape_text(d.summary)}</summary><pre>{escape_text(d.text)}</pre></details>" for d in details
    )
    return f"<section><h2>Details</h2>{blocks}</section>"

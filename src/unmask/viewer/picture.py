"""Charts as one PNG, through matplotlib, and its font for other pictures. The one importer of matplotlib."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.errors import UnmaskError
from unmask.files import new_file
from unmask.viewer.charts import NUM_STYLES, Chart, dash_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

CHART_WIDTH, CHART_HEIGHT = 4.4, 2.9  # inches
DOTS_PER_INCH = 130
MAX_COLUMNS = 4
NUM_MARKERS = 8  # per curve

COLOURS = ("#2457c5", "#b4480d", "#0b7168", "#7a3db8")
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (7, 2, 1.5, 2)))
MARKERS = ("o", "s", "^", "D")  # every second one open, as on the page


def draw_charts(charts: Sequence[Chart], title: str, path: Path, note: str = "") -> None:
    """Writes the charts as small multiples, with one legend (they have the same series) if there are several series.

    note: set small, below the charts. A chart's reference, y_range and caption are for the page and not drawn.
    Raises `UnmaskError` where matplotlib is not installed or the file cannot be written.
    """
    try:
        figure = make_figure(charts, title, note)
    except ImportError:
        raise UnmaskError(f"{path}: drawing needs matplotlib, which is not installed: pip install 'unmask[plot]'") from None
    with new_file(path) as temporary:
        figure.savefig(temporary, format="png")


def monospace_font() -> Path | None:
    """A font file that comes with matplotlib (DejaVu Sans Mono); None where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSansMono.ttf"
    return path if path.exists() else None


def make_figure(charts: Sequence[Chart], title: str, note: str) -> Figure:
    """See `draw_charts`. Raises `ImportError` where matplotlib is not installed."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    num_columns = min(MAX_COLUMNS, math.ceil(math.sqrt(len(charts))))
    num_rows = math.ceil(len(charts) / num_columns)
    width, height = (size * (1.5 if len(charts) == 1 else 1.0) for size in (num_columns * CHART_WIDTH, num_rows * CHART_HEIGHT))
    names = [series.name for series in charts[0].series]
    legend_columns = max(1, min(len(names), int(width / (0.09 * max(map(len, names)) + 0.9))))  # inches of an entry, roughly
    legend_rows = math.ceil(len(names) / legend_columns)
    figure = Figure(
        (width, height + 0.8 + 0.2 * legend_rows), dpi=DOTS_PER_INCH,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1),
    )  # fmt: skip
    figure.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
    note = textwrap.fill(note, int(width / 0.075))
    xs = [x for chart in charts for series in chart.series for x in series.xs]
    margin = 0.03 * (max(xs) - min(xs)) or 1.0
    lines: list[Line2D] = []
    for i, chart in enumerate(charts):
        axes = figure.add_subplot(num_rows, num_columns, i + 1)
        lines = _draw(axes, chart)
        axes.set_xlim(min(xs) - margin, max(xs) + margin)  # the same in all, so that steps stand above each other
    if len(names) > 1:
        legend = figure.legend(
            lines, map(str, range(len(names))), loc="outside lower center", ncols=legend_columns, frameon=False, fontsize=10,
            handlelength=4, title=note, title_fontproperties={"size": 9},
        )  # fmt: skip
        for text, name in zip(legend.get_texts(), names, strict=True):  # not through the legend, which drops "_name"
            text.set(text=name, parse_math=False)
    else:
        figure.supxlabel(note, fontsize=9)
    return figure


def _draw(axes: Axes, chart: Chart) -> list[Line2D]:
    lines = []
    for index, series in enumerate(chart.series):
        style, ys = index % NUM_STYLES, [y if math.isfinite(y) else math.nan for y in series.ys]
        colour = COLOURS[style]
        if series.band:
            lows, highs = zip(*series.band, strict=True)
            axes.fill_between(series.xs, lows, highs, color=colour, alpha=0.16, linewidth=0)
        lines += axes.plot(
            series.xs, ys, color=colour, linestyle=DASHES[dash_of(index)], linewidth=1.5, marker=MARKERS[style],
            markersize=4.5, markerfacecolor="white" if style % 2 else colour,
            markevery=max(1, math.ceil(len(ys) / NUM_MARKERS)),
        )  # fmt: skip
    axes.set_title(chart.title, fontsize=11, parse_math=False)
    axes.set_xlabel(chart.x_label, fontsize=9, parse_math=False)
    axes.set_ylabel(chart.y_label, fontsize=9, parse_math=False)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", integer=True, nbins=6)
    axes.grid(color="#dce1e8", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    return lines

"""Line charts, and how they look as inline SVG: readable without colour (dashes and marker shapes), without JavaScript,
light and dark."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unmask.viewer.page import embed_json, escape_text

# Drawing units. Tick texts are set in these too (13, 17 on a phone), which is why the margins look generous.
WIDTH, HEIGHT = 520, 290
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 12, 30

NUM_STYLES = 4
DASHES = ("", "8 5", "2 5", "10 4 2 4")
NUM_MARKERS = 16  # per series; a curve of hundreds of points would drown in them


@dataclass(frozen=True, slots=True)
class Series:
    """One curve. `xs` ascend; a `y` that is not finite interrupts the line. Raises `ValueError` on unequal lengths.

    band: empty, or (low, high) for every x: an area around the line, drawn where both are finite.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    band: Sequence[tuple[float, float]] = ()

    def __post_init__(self) -> None:
        if len(self.xs) != len(self.ys):
            raise ValueError(f"series {self.name!r} has {len(self.xs)} xs and {len(self.ys)} ys")
        if len(self.band) not in (0, len(self.xs)):
            raise ValueError(f"series {self.name!r} has {len(self.xs)} xs and a band of {len(self.band)}")
        if not all(math.isfinite(x) for x in self.xs):
            raise ValueError(f"series {self.name!r} has an x that is not finite")
        if any(a > b for a, b in zip(self.xs, self.xs[1:], strict=False)):
            raise ValueError(f"series {self.name!r} has xs that do not ascend")


@dataclass(frozen=True, slots=True)
class ReferenceLine:
    """A horizontal line to compare with, e.g. the target."""

    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A line chart. Up to 16 series stay distinguishable (four markers, four dashes), more repeat the styles.

    Without `y_range` the y axis covers all values and the reference; with it, values beyond are drawn on the edge.
    Raises `ValueError` where `y_range` does not ascend or the reference is not finite.
    """

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    y_range: tuple[float, float] | None = None
    reference: ReferenceLine | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        if self.y_range and not self.y_range[0] < self.y_range[1]:
            raise ValueError(f"chart {self.title!r} has y_range {self.y_range}, which does not ascend")
        if self.reference and not math.isfinite(self.reference.y):
            raise ValueError(f"chart {self.title!r} has a reference that is not finite")


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps values to drawing units; values outside the range land on its edge."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(1.0, max(0.0, share)) * (self.stop - self.start), 1)


def render_chart(chart: Chart, chart_id: str) -> str:
    """The chart as a `<figure>`; `chart_id` is unique on the page."""
    xs = [x for series in chart.series for x in series.xs]
    ys = [y for series in chart.series for y in (*series.ys, *itertools.chain(*series.band)) if math.isfinite(y)]
    if chart.reference:
        ys.append(chart.reference.y)
    x_ticks = axis_ticks(min(xs, default=0.0), max(xs, default=1.0), count=5)
    y_ticks = axis_ticks(*(chart.y_range or (min(ys, default=0.0), max(ys, default=1.0))), count=5)
    # x ends with the data, where y ends with a tick: time has no round end.
    x_low, x_high = (xs[0], xs[0] + 1.0) if xs and min(xs) == max(xs) else (min(xs, default=0.0), max(xs, default=1.0))
    y_low, y_high = chart.y_range or (y_ticks[0], y_ticks[-1])
    x_of, y_of = _Scale(x_low, x_high, LEFT, WIDTH - RIGHT), _Scale(y_low, y_high, HEIGHT - BOTTOM, TOP)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{escape_text(_summary(chart))}">']
    parts += _grid([t for t in x_ticks if x_low <= t <= x_high], [t for t in y_ticks if y_low <= t <= y_high], x_of, y_of)
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    for index, series in enumerate(chart.series):
        parts += _band(series, index % NUM_STYLES, x_of, y_of)
    for index, series in enumerate(chart.series):
        parts += _curve(chart, series, index, x_of, y_of)
    if chart.reference:
        parts += _reference(chart.reference, y_of)
    parts.append("</svg>")

    stops = _stops(chart, x_of)
    return (
        f'<figure class="chart"><h3>{escape_text(chart.title)}</h3>{_legend(chart, stops)}'
        f'<p class="axis-name">{escape_text(chart.y_label)}</p>{"".join(parts)}'
        f'<p class="axis-name x">{escape_text(chart.x_label)}</p>'
        + (f'<figcaption class="caption">{escape_text(chart.caption)}</figcaption>' if chart.caption else "")
        + _values(chart, stops)
        + embed_json({"stops": stops}, chart_id)
        + "</figure>"
    )


def axis_ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round numbers (1, 2, 2.5 or 5 times a power of ten apart) that cover `low` to `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # equal but for rounding
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, low + pad
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def format_value(value: float) -> str:
    """Short for reading: four significant digits, no exponent between a thousandth and a million."""
    if not math.isfinite(value):
        return "–"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}".replace("-", "−")
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:.{min(digits, 4)}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def _grid(x_ticks: Sequence[float], y_ticks: Sequence[float], x_of: _Scale, y_of: _Scale) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in y_ticks:
        y = y_of(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y + 4.5}" text-anchor="end">{format_value(tick)}</text>')
    for tick in x_ticks:
        x = x_of(tick)
        # The text of a tick at the right edge would be cut off if it were centred.
        anchor = "end" if x > right - 12 else "middle"
        parts.append(f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 5}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 22}" text-anchor="{anchor}">{format_value(tick)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    return parts


def dash_of(index: int) -> int:
    """Which of `NUM_STYLES` dashes the series at this place has. Its marker and colour are `index % NUM_STYLES`; the dashes
    shift by one after each round, so that no pair comes twice among `NUM_STYLES**2` series."""
    return (index + index // NUM_STYLES) % NUM_STYLES


def _band(series: Series, style: int, x_of: _Scale, y_of: _Scale) -> Iterator[str]:
    points = zip(series.xs, series.band, strict=bool(series.band))
    for is_finite, part in itertools.groupby(points, lambda point: all(map(math.isfinite, point[1]))):
        if is_finite:
            there = [(x_of(x), y_of(low), y_of(high)) for x, (low, high) in part]
            outline = [*((x, high) for x, _, high in there), *((x, low) for x, low, _ in reversed(there))]
            yield f'<path class="band series-{style}" d="M{"L".join(f"{x} {y}" for x, y in outline)}Z"/>'


def _curve(chart: Chart, series: Series, index: int, x_of: _Scale, y_of: _Scale) -> Iterator[str]:
    style, path, is_down = index % NUM_STYLES, [], False
    for x, y in zip(series.xs, series.ys, strict=True):
        if math.isfinite(y):
            path.append(f"{'L' if is_down else 'M'}{x_of(x)} {y_of(y)}")
        is_down = math.isfinite(y)
    yield f'<path class="series series-{style}" stroke-dasharray="{DASHES[dash_of(index)]}" d="{"".join(path)}"/>'
    every = max(1, math.ceil(len(series.xs) / NUM_MARKERS))
    for i, (x, y) in enumerate(zip(series.xs, series.ys, strict=True)):
        if math.isfinite(y) and (i % every == 0 or i == len(series.xs) - 1):
            title = f"{series.name}: {format_value(y)} ({chart.x_label} {format_value(x)})"
            yield _marker(style, x_of(x), y_of(y), f"<title>{escape_text(title)}</title>")


def _marker(style: int, x: float, y: float, inside: str = "") -> str:
    shape = (
        f"M{x - 3.5} {y}a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z",  # disc
        f"M{x - 3.5} {y - 3.5}h7v7h-7z",  # open square
        f"M{x} {y - 4.5}l4.5 8h-9z",  # triangle
        f"M{x} {y - 5}l5 5l-5 5l-5 -5z",  # open diamond
    )[style]
    return f'<path class="marker series-{style}" d="{shape}">{inside}</path>'


def _reference(reference: ReferenceLine, y_of: _Scale) -> list[str]:
    y = y_of(reference.y)
    text_y = y - 6 if y > TOP + 24 else y + 17
    return [
        f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>',
        f'<text class="reference-name" x="{LEFT + 8}" y="{text_y}">{escape_text(reference.label)}</text>',
    ]


def _stops(chart: Chart, x_of: _Scale) -> list[tuple[float, str, list[str]]]:
    """Every x of any series: its place, its text, and the text of each series' value there."""
    columns = [dict(zip(series.xs, _texts(series), strict=True)) for series in chart.series]
    xs = sorted({x for column in columns for x in column})
    return [(x_of(x), format_value(x), [column.get(x, format_value(math.nan)) for column in columns]) for x in xs]


def _texts(series: Series) -> list[str]:
    texts = [format_value(y) for y in series.ys]
    if not series.band:
        return texts
    return [
        f"{text} ({format_value(low)} to {format_value(high)})" for text, (low, high) in zip(texts, series.band, strict=True)
    ]


def _legend(chart: Chart, stops: Sequence[tuple[float, str, list[str]]]) -> str:
    last_x, last_values = (stops[-1][1], stops[-1][2]) if stops else ("–", ["–"] * len(chart.series))
    items = []
    for index, (series, value) in enumerate(zip(chart.series, last_values, strict=True)):
        style = index % NUM_STYLES
        swatch = (
            f'<svg viewBox="0 0 34 14" aria-hidden="true"><path class="series series-{style}" '
            f'stroke-dasharray="{DASHES[dash_of(index)]}" d="M1 7H33"/>{_marker(style, 17, 7)}</svg>'
        )
        items.append(f'<li>{swatch}{escape_text(series.name)} <span class="chart-value">{value}</span></li>')
    place = f'{escape_text(chart.x_label)} <span class="chart-at">{last_x}</span>'
    return f'<ul class="chart-legend">{"".join(items)}<li class="chart-place"><span>{place}</span></li></ul>'


def _values(chart: Chart, stops: Sequence[tuple[float, str, list[str]]]) -> str:
    head = "".join(
        f'<th class="number" scope="col">{escape_text(name)}</th>' for name in (chart.x_label, *[s.name for s in chart.series])
    )
    rows = "".join(
        "<tr>" + "".join(f'<td class="number">{text}</td>' for text in (x, *values)) + "</tr>" for _, x, values in stops
    )
    return (
        "<details><summary>All values</summary>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape_text(chart.title)}: all values">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></details>"
    )


def _summary(chart: Chart) -> str:
    parts = [f"{chart.title}: {chart.y_label} against {chart.x_label}."]
    for series in chart.series:
        ys = [y for y in series.ys if math.isfinite(y)]
        if ys:
            parts.append(f"{series.name} goes from {format_value(ys[0])} to {format_value(ys[-1])}.")
    if chart.reference:
        parts.append(f"{chart.reference.label}: {format_value(chart.reference.y)}.")
    return " ".join(parts)

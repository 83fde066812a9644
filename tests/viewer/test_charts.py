from __future__ import annotations

import itertools
import json
import math
import re

import pytest

from unmask.viewer.charts import Chart, ReferenceLine, Series, axis_ticks, format_value, render_chart


def test_ticks_are_round_and_cover_the_range():
    assert axis_ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert axis_ticks(0.93, 2.18, 5) == [0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25]
    assert axis_ticks(-3, 17, 5) == [-5, 0, 5, 10, 15, 20]
    for low, high in ((2, 2), (0, 0), (1e-9, 3e-9), (0, 123456), (-4, -4), (0.1, 0.1 + 2e-17), (0.1, 0.1 + 1e-16), (0, 3e-15)):
        ticks = axis_ticks(low, high, 5)
        assert ticks[0] <= low <= high <= ticks[-1]
        assert 3 <= len(ticks) <= 8
        assert all(a < b for a, b in itertools.pairwise(ticks))


def test_values_are_short():
    numbers = [0, 1, 0.5, 0.93664, 2.0, 200, 1234.5678, -0.25, 3e-4, 1e7, math.nan, math.inf]
    assert [format_value(x) for x in numbers] == [
        "0", "1", "0.5", "0.9366", "2", "200", "1235", "−0.25", "0.0003", "1e+07", "–", "–",
    ]  # fmt: skip


def test_every_series_has_its_own_dashes_and_marker():
    series = [Series(f"s{i}", [0, 1], [i, i + 1]) for i in range(4)]
    page = render_chart(Chart("t", "x", "y", series), "c")
    curves = re.findall(r'<path class="series series-(\d)" stroke-dasharray="([^"]*)" d="M56', page)
    assert len({dash for _, dash in curves}) == 4
    shapes = {re.sub(r"[\d. ]+", "", d) for d in re.findall(r'<path class="marker series-\d" d="([^"]*)"><title>', page)}
    assert len(shapes) == 4


def test_more_series_than_markers_differ_in_dashes_and_marker_together():
    page = render_chart(Chart("t", "x", "y", [Series(f"s{i}", [0, 1], [i, i + 1]) for i in range(16)]), "c")
    curves = re.findall(r'<path class="series series-(\d)" stroke-dasharray="([^"]*)" d="M56', page)
    assert len(set(curves)) == len(curves) == 16
    swatches = re.findall(r'<path class="series series-(\d)" stroke-dasharray="([^"]*)" d="M1 7H33"', page)
    assert swatches == curves  # the legend shows what is drawn


def test_a_band_is_an_area_and_widens_the_axis():
    series = Series("s", [0, 1, 2], [1, 2, 3], [(0, 2), (1, 4), (2, 10)])
    page = render_chart(Chart("t", "x", "y", [series]), "c")
    top, right, bottom = 12.0, 506.0, 260.0
    outline = re.search(r'<path class="band series-0" d="M([^"]*)Z"', page)[1].split("L")
    assert len(outline) == 6
    assert outline[2] == f"{right} {top}"  # the largest value of the last x is the top of the axis
    assert outline[-1] == f"56.0 {bottom}"
    data = json.loads(re.search(r'id="c">(.*?)</script>', page)[1])
    assert [values for _, _, values in data["stops"]] == [["1 (0 to 2)"], ["2 (1 to 4)"], ["3 (2 to 10)"]]


def test_a_band_that_is_not_finite_is_interrupted():
    band = [(0, 1), (math.nan, 1), (0, 1), (0, 1)]
    page = render_chart(Chart("t", "x", "y", [Series("s", [0, 1, 2, 3], [0, 0, 0, 0], band)]), "c")
    assert [d.count("L") for d in re.findall(r'class="band series-0" d="([^"]*)"', page)] == [1, 3]
    assert "nan" not in page


def test_values_that_are_not_finite_interrupt_the_line():
    page = render_chart(Chart("t", "x", "y", [Series("s", [0, 1, 2, 3], [1, math.nan, 2, 3])]), "c")
    path = re.search(r'<path class="series series-0"[^>]* d="(M56[^"]*)"', page)[1]
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert "nan" not in page


def test_values_beyond_the_range_stay_inside_the_drawing():
    page = render_chart(Chart("t", "x", "y", [Series("s", [0, 1], [-5, 9])], (0, 1), ReferenceLine(0.5, "half")), "c")
    assert 'd="M56.0 260.0L506.0 12.0"' in page
    assert 'class="reference" x1="56" x2="506" y1="136.0" y2="136.0"' in page


def test_stops_hold_every_x_of_every_series():
    page = render_chart(Chart("t", "x", "y", [Series("a", [0, 2], [1, 2]), Series("b", [1, 2], [3, 4])]), "c")
    data = json.loads(re.search(r'id="c">(.*?)</script>', page)[1])
    assert [(label, values) for _, label, values in data["stops"]] == [
        ("0", ["1", "–"]), ("1", ["–", "3"]), ("2", ["2", "4"]),
    ]  # fmt: skip


@pytest.mark.parametrize("series", [[], [Series("s", [], [])], [Series("s", [3], [2])], [Series("s", [1, 2], [math.nan] * 2)]])
def test_little_or_no_data_still_makes_a_chart(series):
    page = render_chart(Chart("t", "x", "y", series), "c")
    assert page.startswith('<figure class="chart">')
    assert "nan" not in page


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="series 's' has 1 xs and 2 ys"):
        Series("s", [1], [1, 2])
    with pytest.raises(ValueError, match="2 xs and a band of 1"):
        Series("s", [1, 2], [1, 2], [(0, 1)])
    with pytest.raises(ValueError, match="do not ascend"):
        Series("s", [2, 1], [1, 2])
    with pytest.raises(ValueError, match="an x that is not finite"):
        Series("s", [math.nan], [1])
    with pytest.raises(ValueError, match="does not ascend"):
        Chart("t", "x", "y", [], (1, 1))
    with pytest.raises(ValueError, match="reference that is not finite"):
        Chart("t", "x", "y", [], None, ReferenceLine(math.nan, "r"))

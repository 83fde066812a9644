from __future__ import annotations

import sys

import pytest

from unmask.errors import UnmaskError
from unmask.viewer.charts import Chart, Series
from unmask.viewer.picture import draw_charts, make_figure

PNG = b"\x89PNG\r\n\x1a\n"
NAMES = ["_hidden", "$x$ (3 runs)", *(f"a longer name of a run {i}" for i in range(6))]


def charts(num: int, names: list[str], x: float = 0.0) -> list[Chart]:
    series = [Series(name, [x, x + 1], [i, i + 1.5], [(i - 1, i + 1), (i, i + 2)]) for i, name in enumerate(names)]
    return [Chart(f"metric_{i}", "step", "nats per token", series) for i in range(num)]


def test_a_png_is_written(tmp_path):
    path = tmp_path / "new" / "plot.png"
    draw_charts(charts(3, ["a", "b"]), "Title", path, "A note.")
    assert path.read_bytes().startswith(PNG)
    assert [p.name for p in path.parent.iterdir()] == ["plot.png"]


@pytest.mark.parametrize("num", [1, 2, 7, 21])
@pytest.mark.parametrize("names", [NAMES[:1], NAMES[:3], NAMES])
def test_every_chart_has_its_words_and_nothing_overlaps(num, names):
    note = "Line: mean of the runs of one label. Area: from the smallest to the largest of them."
    figure = make_figure(charts(num, names), "Training curves", note)
    figure.draw_without_rendering()
    assert [axes.get_title() for axes in figure.axes] == [f"metric_{i}" for i in range(num)]
    assert {(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes} == {("step", "nats per token")}
    assert [len(axes.lines) for axes in figure.axes] == [len(names)] * num
    boxes = [axes.get_tightbbox() for axes in figure.axes] + [figure.texts[0].get_window_extent()]
    if len(names) > 1:
        assert [text.get_text() for text in figure.legends[0].get_texts()] == names  # as they are: no math, none dropped
        boxes.append(figure.legends[0].get_window_extent())
    else:
        boxes.append(figure.texts[1].get_window_extent())
    overlaps = [(a, b) for a in boxes for b in boxes if a is not b and a.overlaps(b)]
    assert overlaps == []
    assert all(figure.bbox.padded(1).contains(*corner) for box in boxes for corner in box.corners())


def test_curves_are_told_apart_without_colour():
    (axes,) = make_figure(charts(1, [f"s{i}" for i in range(16)]), "t", "").axes
    assert len({(str(line._unscaled_dash_pattern), line.get_marker()) for line in axes.lines}) == 16


@pytest.mark.parametrize("series", [Series("s", [3], [2.0]), Series("s", [1, 2], [1.0, float("inf")])])
def test_little_data_still_makes_a_picture(series):
    figure = make_figure([Chart("t", "step", "y", [series, Series("none", [], [])])], "t", "")
    figure.draw_without_rendering()


def test_without_matplotlib_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UnmaskError, match=r"plot.png: drawing needs matplotlib.*pip install 'unmask\[plot\]'"):
        draw_charts(charts(1, ["a"]), "t", tmp_path / "plot.png")
    assert list(tmp_path.iterdir()) == []

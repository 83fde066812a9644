"""Pages to look at: the player of denoising traces, alone or with a server's form, and the report of a training demonstration.

Every page is one self-contained HTML file that loads nothing: no fonts, no scripts, no images from anywhere else. Only the
page of a server sends anything: questions, to that server.
"""

from __future__ import annotations

from unmask.viewer.charts import Chart, ReferenceLine, Series
from unmask.viewer.live import render_live
from unmask.viewer.player import load_records, render_player
from unmask.viewer.report import Comparison, Detail, KeyFigure, Report, Table, render_report

__all__ = [
    "Chart",
    "Comparison",
    "Detail",
    "KeyFigure",
    "ReferenceLine",
    "Report",
    "Series",
    "Table",
    "load_records",
    "render_live",
    "render_player",
    "render_report",
]

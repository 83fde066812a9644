"""`unmask plot`."""

from __future__ import annotations

from pathlib import Path

from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.viewer.curves import choose_metrics, explain, load_run, make_charts, render_curves
from unmask.viewer.picture import draw_charts

PICTURE, PAGE = "plot.png", "plot.html"


def run_plot(folders: list[Path], output: Path | None, metrics: list[str], labels: list[str], smooth: int) -> None:
    """Draws the runs' curves and prints the paths of what was written. Raises `UnmaskError` before anything is.

    Without matplotlib the page is written all the same; the error that the picture lacks it comes after that.
    """
    picture, page = _outputs(output or (folders[0] if len(folders) == 1 else Path()))
    if labels and len(labels) != len(folders):
        raise UnmaskError(f"{len(labels)} labels for {len(folders)} runs; give one --label per run, in their order")
    twice = [folder for i, folder in enumerate(folders) if folder.resolve() in {f.resolve() for f in folders[:i]}]
    if twice:
        raise UnmaskError(f"{twice[0]}: given twice")
    runs = [load_run(folder) for folder in folders]
    labels = labels or _names(folders)
    charts = make_charts(runs, labels, choose_metrics(runs, metrics), smooth)
    title = f"Training curves: {labels[0]}" if len(set(labels)) == 1 else "Training curves"
    if page:
        write_text(page, render_curves(title, folders, runs, labels, charts, smooth))
        print(page)
    if picture:
        draw_charts(charts, title, picture, explain(labels, smooth))
        print(picture)


def _outputs(output: Path) -> tuple[Path | None, Path | None]:
    """Where picture and page go: a name in .png or .html is that one alone, any other is a folder for both."""
    kind = output.suffix.lower()
    if not output.is_dir() and kind not in (".png", ".html") and (output.exists() or kind in (".pdf", ".svg", ".jpg", ".jpeg")):
        raise UnmaskError(f"{output}: give a name that ends in .png (picture) or .html (page), or a folder for both")
    if not output.is_dir() and kind in (".png", ".html"):
        return (output, None) if kind == ".png" else (None, output)
    for file in (output / PICTURE, output / PAGE):
        if file.is_dir():
            raise UnmaskError(f"{file}: is a folder; choose another output")
    return output / PICTURE, output / PAGE


def _names(folders: list[Path]) -> list[str]:
    """The folders' own names if they differ, else the paths as given."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]

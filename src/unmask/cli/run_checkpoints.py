"""`unmask checkpoint list|verify`: what a run has kept, and whether it is whole."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from unmask.errors import UnmaskError


def run_list(run: Path) -> None:
    """Prints a line for each checkpoint of the run folder, oldest first, without reading the weights. Raises `UnmaskError`."""
    from rich.console import Console
    from rich.table import Table

    from unmask.train.checkpoint import MANIFEST
    from unmask.train.folder import BEST

    best = (run / BEST).resolve()
    table = Table(box=None, pad_edge=False)
    table.add_column("checkpoint")
    table.add_column("MB", justify="right")
    table.add_column("written")
    table.add_column()
    for path in _checkpoints(run):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        is_whole = (path / MANIFEST).exists()
        written = datetime.fromtimestamp((path / MANIFEST if is_whole else path).stat().st_mtime).isoformat(" ", "seconds")
        note = "best" if path.resolve() == best else ""
        table.add_row(path.name, f"{size / 1e6:,.1f}", written, note if is_whole else "incomplete")
    Console(highlight=False, soft_wrap=True).print(table)


def run_verify(where: Path) -> None:
    """Reads all of a checkpoint, or of all those of a run folder, and compares sizes and checksums with the manifests.

    Raises `UnmaskError` if one of them is damaged, after all were looked at.
    """
    from unmask.train.checkpoint import find_damage

    paths = [where] if not (where / "checkpoints").is_dir() and where.is_dir() else _checkpoints(where)
    damaged = 0
    for path in paths:
        problem = find_damage(path)
        damaged += problem is not None
        print(f"{path}: {problem or 'whole'}", flush=True)
    if damaged:
        raise UnmaskError(f"{where}: {damaged} of {len(paths)} checkpoints are damaged; --resume takes the newest whole one")


def _checkpoints(run: Path) -> list[Path]:
    """All checkpoints of a run folder, whole or not, oldest first. Raises `UnmaskError` where there are none."""
    if not run.is_dir():
        raise UnmaskError(f"{run}: no such folder")
    if not (paths := sorted((run / "checkpoints").glob("step-*"))):
        raise UnmaskError(f"{run}: has no checkpoints; give the folder of a run")
    return paths

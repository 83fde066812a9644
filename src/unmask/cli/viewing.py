"""`unmask view`."""

from __future__ import annotations

from pathlib import Path

from unmask.errors import UnmaskError
from unmask.files import write_text
from unmask.types import TraceRecord
from unmask.viewer import load_records, render_player
from unmask.viewer.animation import check_animation, draw_animation
from unmask.viewer.player import DEFAULT_LABELS


def run_view(traces: Path, compare: Path | None, output: Path | None, gif: Path | None, record_id: str | None) -> None:
    """Writes the page or, with `gif`, an animation of one record (two side by side with `compare`). Raises `UnmaskError`."""
    if gif is None and record_id is not None:
        raise UnmaskError("--record is for --gif; a page has all records")
    if gif is not None and output is not None:
        raise UnmaskError("--output is for a page; give either --output or --gif")
    target = gif or output or traces.with_suffix(".html")
    if target.resolve() in {p.resolve() for p in (traces, compare) if p}:
        what = "page" if gif is None else "animation"
        raise UnmaskError(f"{target}: is the file with the traces; write the {what} somewhere else")
    if gif is not None:
        check_animation(gif)
    records, other = load_records(traces), load_records(compare) if compare else None
    labels = (traces.stem, compare.stem) if compare else DEFAULT_LABELS
    if gif is None:
        write_text(target, render_player(records, f"unmask: {traces.name}", other, labels))
    else:
        chosen = [_find(records, record_id, traces)] if other is None else _find_pair(records, other, record_id, traces)
        draw_animation(chosen, gif, labels if other is not None else ())
    print(target)


def _find(records: list[TraceRecord], record_id: str | None, path: Path) -> TraceRecord:
    """The first record, or the first with this id."""
    for record in records:
        if record_id is None or record.id == record_id:
            return record
    ids = list(dict.fromkeys(record.id for record in records))
    more = ", ..." if len(ids) > 5 else ""
    raise UnmaskError(f"{path}: has no record {record_id!r}; it has {', '.join(map(repr, ids[:5]))}{more}")


def _find_pair(
    records: list[TraceRecord], other: list[TraceRecord], record_id: str | None, path: Path
) -> list[TraceRecord]:  # fmt: skip
    """The first record whose id the other file has, too (or the one with this id), and that file's first with the id."""
    theirs: dict[str, TraceRecord] = {}
    for record in other:
        theirs.setdefault(record.id, record)
    shared = [record for record in records if record.id in theirs]
    if not shared:
        raise UnmaskError(f"the two files have no id in common (first ids: {records[0].id!r} and {other[0].id!r})")
    mine = _find(shared, record_id, path)
    return [mine, theirs[mine.id]]

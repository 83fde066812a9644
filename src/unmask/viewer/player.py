"""The player: watch a diffusion language model unmask its answer, one denoising step after the other."""

from __future__ import annotations

import codecs
import json
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from unmask.errors import UnmaskError
from unmask.types import TraceRecord
from unmask.viewer.page import embed_json, escape_text, read_asset, render_page

PLAYER_STYLES = ("base.css", "player.css")
PLAYER_SCRIPTS = ("records.js", "histogram.js", "panel.js", "player.js")
PAGE_SCRIPTS = (*PLAYER_SCRIPTS, "files.js")  # of pages that also open files
DEFAULT_LABELS = ("before", "after")


def load_records(path: str | Path) -> list[TraceRecord]:
    """Read `traces.jsonl`: one trace record, or one bare trace, a line; blank lines are skipped.

    Raises:
        UnmaskError: one line that names the file, the line number (`file:line: ...`) and what is wrong.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise UnmaskError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UnmaskError(f"{path}: is a directory; expected a file with one JSON object per line") from None
    except OSError as error:
        raise UnmaskError(f"{path}: cannot be read ({error.strerror})") from None

    records = []
    for number, line in enumerate(data.removeprefix(codecs.BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            records.append(_read_record(line, where=f"{path}:{number}", number=number))
    if not records:
        raise UnmaskError(f"{path}: holds no traces; expected one JSON object per line")
    return records


def render_player(
    records: Sequence[TraceRecord],
    title: str,
    compare: Sequence[TraceRecord] | None = None,
    labels: tuple[str, str] = DEFAULT_LABELS,
) -> str:
    """The page of `unmask view`: a self-contained HTML document.

    With `compare` each record is shown beside the one of the same `id` (the n-th beside the n-th where an id occurs
    more than once), both driven by one clock; records without a counterpart are left out and counted on the page.
    `labels` name the two sides and are not used without `compare`.

    Raises:
        UnmaskError: nothing to show, or no id in common.
    """
    data = player_data(records, compare, labels, name=title)
    body = (
        f'<main class="player-page"><div class="page-head"><h1 data-role="title">{escape_text(title)}</h1>'
        f"{read_asset('files.html')}</div>{player_html(data, keys='page')}</main>"
    )
    return render_page(title, body, PLAYER_STYLES, PAGE_SCRIPTS)


def player_html(data: dict[str, Any] | None, keys: Literal["page", "player"]) -> str:
    """The player as a part of a page that has `PLAYER_STYLES` and `PLAYER_SCRIPTS`; one player a page.

    `data`: from `player_data`; None = it has nothing to show yet. `keys`: "page" listens to the keyboard everywhere,
    "player" only while the focus is inside the player.
    """
    note, level = ("", "2") if keys == "page" else ("With the focus in the player: ", "3")
    markup = read_asset("player.html")
    for name, text in (("keys", keys), ("keys_note", note), ("level", level)):
        markup = markup.replace(f"{{{name}}}", text)
    return markup + embed_json(data or {"name": "", "records": [], "compare": None, "labels": []}, "player-data")


def player_data(
    records: Sequence[TraceRecord], compare: Sequence[TraceRecord] | None, labels: tuple[str, str], name: str
) -> dict[str, Any]:
    """What `player.js` starts with: what it shows of the records, under their own field names.

    The page pairs `records` with `compare` as it does for files; `labels` name the two sides, `name` stands for `records`
    where the page shows a file beside them. Raises `UnmaskError` where there would be nothing to see.
    """
    if not records or (compare is not None and not compare):
        raise UnmaskError("nothing to show: there are no trace records")
    if compare is not None:
        pair_records(records, compare)
    return {
        "name": name,
        "records": [_compact(record) for record in records],
        "compare": None if compare is None else [_compact(record) for record in compare],
        "labels": [] if compare is None else list(labels),
    }


def pair_records(records: Sequence[TraceRecord], compare: Sequence[TraceRecord]) -> list[tuple[TraceRecord, TraceRecord]]:
    """Records with the same id, in the order of `records`; the n-th of an id meets the n-th of that id.

    Raises `UnmaskError` where there is no pair.
    """
    waiting: dict[str, deque[TraceRecord]] = defaultdict(deque)
    for record in compare:
        waiting[record.id].append(record)
    pairs = [(record, waiting[record.id].popleft()) for record in records if waiting[record.id]]
    if not pairs:
        raise UnmaskError(f"the two sets of traces have no id in common (first ids: {records[0].id!r} and {compare[0].id!r})")
    return pairs


def _read_record(line: bytes, where: str, number: int) -> TraceRecord:
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UnmaskError(f"{where}: not UTF-8 text (byte {error.start + 1} of the line)") from None
    except json.JSONDecodeError as error:
        raise UnmaskError(f"{where}: not JSON ({error.msg}, column {error.colno})") from None
    except (ValueError, RecursionError):
        raise UnmaskError(f"{where}: not JSON that can be read (a number too long or nesting too deep)") from None
    if isinstance(data, dict) and "trace" not in data and "canvas_ids" in data:
        # A bare trace is named after its line, not its file, so that two files of them can be compared.
        data = {"id": f"line {number}", "trace": data}
    return TraceRecord.from_dict(data, where)


def _compact(record: TraceRecord) -> dict[str, Any]:
    trace = record.trace
    return {
        "id": record.id,
        "prompt_text": record.prompt_text,
        "prompt_pieces": record.prompt_pieces,
        "canvas_pieces": record.canvas_pieces,
        "answer": record.answer,
        "reward": None if record.reward is None else _number(record.reward),
        "trace": {
            "prompt_ids": trace.prompt_ids,
            "canvas_ids": trace.canvas_ids,
            "step_map": trace.step_map,
            "logprobs": [_number(value) for value in trace.logprobs],
            "confidences": [_number(value) for value in trace.confidences],
            "num_response_tokens": trace.num_response_tokens,
            "block_size": trace.block_size,
            "num_forwards": trace.num_forwards,
            "finish_reason": str(trace.finish_reason),
        },
    }


def _number(value: float) -> float | None:
    """Five significant digits are more than the page shows; JSON knows no infinity, so that becomes null."""
    try:
        return float(f"{value:.5g}") if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None

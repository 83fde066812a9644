"""The player: watch a diffusion language model unmask its answer, one denoising step after the other."""

from __future__ import annotations

import codecs
import json
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.types import Trace, TraceRecord
from unmask.viewer.page import embed_json, escape_text, read_asset, render_page

PLAYER_STYLES = ("base.css", "player.css")
PLAYER_SCRIPTS = ("panel.js", "player.js")
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
    body = f'<main class="player-page"><h1>{escape_text(title)}</h1>{player_html(records, compare, labels, "page")}</main>'
    return render_page(title, body, PLAYER_STYLES, PLAYER_SCRIPTS)


def player_html(
    records: Sequence[TraceRecord], compare: Sequence[TraceRecord] | None, labels: tuple[str, str], keys: str
) -> str:
    """The player as a part of a page that has `PLAYER_STYLES` and `PLAYER_SCRIPTS`; one player a page.

    `keys`: "page" listens to the keyboard everywhere, "player" only while the focus is inside the player.
    """
    note = "" if keys == "page" else "With the focus in the player: "
    markup = read_asset("player.html").replace("{keys}", escape_text(keys)).replace("{keys_note}", note)
    return markup + embed_json(player_data(records, compare, labels), "player-data")


def player_data(
    records: Sequence[TraceRecord], compare: Sequence[TraceRecord] | None, labels: tuple[str, str]
) -> dict[str, Any]:
    """What `player.js` reads: `labels` (one per panel), `numLeftOut`, and `items` with a question and its panels."""
    if not records or (compare is not None and not compare):
        raise UnmaskError("nothing to show: there are no trace records")
    shown: list[tuple[TraceRecord, ...]]
    if compare is None:
        shown, num_left_out = [(record,) for record in records], 0
    else:
        shown = list(pair_records(records, compare))
        num_left_out = len(records) + len(compare) - 2 * len(shown)
    return {
        "labels": [] if compare is None else list(labels),
        "numLeftOut": num_left_out,
        "items": [
            {"id": group[0].id, "question": _question(group[0]), "panels": [_panel_data(record) for record in group]}
            for group in shown
        ],
    }


def pair_records(records: Sequence[TraceRecord], compare: Sequence[TraceRecord]) -> list[tuple[TraceRecord, TraceRecord]]:
    """Records with the same id, in the order of `records`; the n-th of an id meets the n-th of that id."""
    waiting: dict[str, deque[TraceRecord]] = defaultdict(deque)
    for record in compare:
        waiting[record.id].append(record)
    pairs = [(record, waiting[record.id].popleft()) for record in records if waiting[record.id]]
    if not pairs:
        raise UnmaskError(f"the two sets of traces have no id in common (first ids: {records[0].id!r} and {compare[0].id!r})")
    return pairs


def canvas_blocks(num_prompt_tokens: int, num_canvas_tokens: int, block_size: int) -> list[tuple[int, int, int, int]]:
    """The blocks that the canvas touches, as `(block index, prompt tokens in it, first canvas index, past the last)`.

    Blocks sit on absolute positions: canvas token `i` is in block `(num_prompt_tokens + i) // block_size`. Only the
    first block can hold prompt tokens: the prompt's tail, `num_prompt_tokens % block_size` of them.
    """
    blocks = []
    start = 0
    while start < num_canvas_tokens:
        index, num_before = divmod(num_prompt_tokens + start, block_size)
        stop = min(num_canvas_tokens, start + block_size - num_before)
        blocks.append((index, num_before, start, stop))
        start = stop
    return blocks


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


def _question(record: TraceRecord) -> str:
    text = record.prompt_text or "".join(record.prompt_pieces)
    return " ".join(text.split()) or record.id


def _panel_data(record: TraceRecord) -> dict[str, Any]:
    trace: Trace = record.trace
    return {
        "promptPieces": _pieces(record.prompt_pieces, trace.prompt_ids),
        "pieces": _pieces(record.canvas_pieces, trace.canvas_ids),
        "ids": trace.canvas_ids,
        "steps": trace.step_map,
        "confidences": [_number(value) for value in trace.confidences],
        "logprobs": [_number(value) for value in trace.logprobs],
        "blocks": canvas_blocks(len(trace.prompt_ids), len(trace.canvas_ids), trace.block_size),
        "numResponse": trace.num_response_tokens,
        "numForwards": trace.num_forwards,
        "finishReason": str(trace.finish_reason),
        "reward": None if record.reward is None else _number(record.reward),
        "answer": record.answer,
    }


def _pieces(pieces: Sequence[str], ids: Sequence[int]) -> list[str]:
    """Tokens as text; an id without text (no pieces recorded, or half a character) is shown as `[id]`."""
    return [piece or f"[{token}]" for piece, token in zip(pieces or [""] * len(ids), ids, strict=True)]


def _number(value: float) -> float | None:
    """Five significant digits are more than the page shows; JSON knows no infinity, so that becomes null."""
    try:
        return float(f"{value:.5g}") if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the range of floats
        return None

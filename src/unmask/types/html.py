"""How a trace shows itself in a notebook: one piece of HTML with inline styles, no scripts, and colours for any background."""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unmask.types.levels import level

if TYPE_CHECKING:
    from unmask.types.trace import Trace, TraceRecord

# Laid over whatever background a notebook has: the hues of the page, unsure to sure.
_TINTS = (
    "rgba(240,120,40,.55)", "rgba(240,150,80,.32)", "rgba(128,128,128,.16)", "rgba(80,140,230,.25)", "rgba(60,130,235,.45)",
)  # fmt: skip
_BOX = "border:1px solid rgba(128,128,128,.4);border-radius:6px;padding:8px 12px;margin:4px 0;max-width:60em"
_FLOW = "font-family:monospace;line-height:1.7;white-space:pre-wrap;overflow-wrap:anywhere"
_HARMLESS = "\n\t\u200c\u200d\u00ad"  # breaks; joiners, which scripts and pictures are written with; where a word may break
_QUIET = "opacity:.7;font-size:90%"


def trace_html(trace: Trace, pieces: Sequence[str] = (), head: Sequence[tuple[str, str]] = ()) -> str:
    """A trace: the canvas in text flow, coloured by confidence, with step, confidence and id of every token as its title.

    pieces: the canvas tokens as text; without them ids stand in their places. head: lines (what, text) above the canvas.
    """
    above = "".join(f'<div style="{_QUIET}">{_escape(what)} <b>{_escape(text)}</b></div>' for what, text in head if text)
    texts = pieces or [str(token) for token in trace.canvas_ids]
    num_reached = max((i + 1 for i, step in enumerate(trace.step_map) if step >= 0), default=0)
    canvas = "".join(_token(trace, i, texts[i], spaced=not pieces) for i in range(num_reached))
    if num_left := len(trace.canvas_ids) - num_reached:
        canvas += f'<span style="opacity:.5"> ▒ {num_left} positions never unmasked</span>'
    response = f"{trace.num_response_tokens} response tokens on a canvas of {len(trace.canvas_ids)}"
    speed = f"{trace.num_forwards} forwards · {trace.tokens_per_forward:.2f} tokens per forward"
    facts = f"{response} · {speed} · finish reason: {trace.finish_reason}"
    return f'<div style="{_BOX}">{above}<div style="{_FLOW}">{canvas}</div><div style="{_QUIET}">{_escape(facts)}</div></div>'


def record_html(record: TraceRecord) -> str:
    """As `trace_html`, with the prompt above the canvas, and the right answer and the reward if the record has them."""
    head = [("prompt", record.prompt_text or "".join(record.prompt_pieces)), ("right answer", record.answer or "")]
    if record.reward is not None:
        head.append(("reward", f"{record.reward:g}"))
    return trace_html(record.trace, record.canvas_pieces, head)


def _token(trace: Trace, index: int, text: str, *, spaced: bool) -> str:
    step, confidence, token = trace.step_map[index], trace.confidences[index], trace.canvas_ids[index]
    if step < 0:
        return '<span style="opacity:.35" title="never unmasked">▒</span>' + " " * spaced
    style = f"background:{_TINTS[level(confidence)]};border-radius:3px"
    if index >= trace.num_response_tokens:  # after the stop token: decoded, and no part of the response
        style = "opacity:.45;font-style:italic"
    title = f"step {step} · confidence {confidence:.3g} · id {token}"
    shown = _escape(text or f"[{token}]").replace("\n", "↵\n")
    return f'<span style="{style}" title="{_escape(title)}">{shown}</span>' + " " * spaced


def _escape(text: str) -> str:
    """Safe in element content and in double-quoted attributes; what would turn the writing around or is no text becomes �."""
    shown = (c if c in _HARMLESS or unicodedata.category(c) not in ("Cc", "Cf", "Cs") else "�" for c in text)
    return html.escape("".join(shown), quote=True)

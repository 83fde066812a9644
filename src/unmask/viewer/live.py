"""The page of a server: ask a question and watch the answer being unmasked."""

from __future__ import annotations

from typing import Any

from unmask.viewer.page import embed_json, escape_text, read_asset, render_page
from unmask.viewer.player import PAGE_SCRIPTS, PLAYER_STYLES, player_html


def render_live(title: str, *, model_name: str, attention: str, block_size: int, defaults: dict[str, Any]) -> str:
    """The page that a server returns at `/`: a self-contained HTML document that talks to its own server and nobody else.

    It sends `POST v1/chat/completions`, relative to its own address, with `stream` and with `stream_unmask` and
    `return_trace` in the field `unmask`. Without a server it still opens files with traces.

    Args:
        title: heading of the page.
        model_name: shown below it, with what `attention` ("block_causal" or "bidirectional") and `block_size` say.
        defaults: what the server takes where a request is silent: `remasking_strategy`, `confidence_threshold`,
            `temperature`, `max_tokens`, `block_size`, `denoising_steps_per_block`, `seed`. The form starts with these;
            what is missing or None starts empty, and what is empty is not sent.
    """
    kind = {"block_causal": f"blocks of {block_size}", "bidirectional": f"full attention, windows of {block_size}"}
    body = (
        f'<main class="player-page"><div class="page-head"><h1>{escape_text(title)}</h1>{read_asset("files.html")}</div>'
        f'<p class="model"><b>{escape_text(model_name)}</b> · {escape_text(kind.get(attention, attention))}</p>'
        f"{read_asset('live.html')}{player_html(None, keys='page')}"
        '<p class="live-empty">Ask something above and watch the answer being unmasked, or open a traces.jsonl.</p></main>'
        + embed_json({"defaults": defaults}, "live-data")
    )
    return render_page(title, body, (*PLAYER_STYLES, "live.css"), (*PAGE_SCRIPTS, "stream.js", "live.js"), connect_src="'self'")

"""One HTML file from parts: assets, escaped text, embedded JSON, and a policy that forbids any network access."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any, Literal


def read_asset(name: str) -> str:
    """Text of a file in `viewer/assets/`."""
    return resources.files("unmask.viewer").joinpath("assets", name).read_text(encoding="utf-8")


def escape_text(text: object) -> str:
    """`text` as HTML, safe in element content and in double-quoted attributes. Lone surrogates become `?`."""
    return html.escape(str(text).encode("utf-8", "replace").decode("utf-8"), quote=True)


def embed_json(data: Any, element_id: str) -> str:
    """A `<script type="application/json">` element holding `data`; `JSON.parse` of its text gives `data` back.

    `data` must hold finite numbers only (`ValueError` otherwise: JSON knows no NaN). Non-ASCII characters are escaped,
    U+2028 and lone surrogates with them, and so are `<`, `>` and `&`: no text inside can end the element or open a
    comment, whatever the browser's state.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{escape_text(element_id)}">{text}</script>'


def render_page(
    title: str,
    body: str,
    styles: Sequence[str],
    scripts: Sequence[str],
    body_class: str = "",
    connect_src: Literal["'none'", "'self'"] = "'none'",
) -> str:
    """The whole page. `body` is trusted HTML; `styles` and `scripts` are names of assets, put inline in order.

    The content security policy allows exactly these scripts, by hash, and no request of any kind: even if a piece of
    text slipped through the escaping as markup, the browser would not run it. With `connect_src` "'self'" the scripts may
    send requests to the server that the page came from.
    """
    script = "\n".join(read_asset(name) for name in scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        f"connect-src {connect_src}; base-uri 'none'; form-action 'none'"
    )
    return Template(read_asset("page.html")).substitute(
        policy=policy,
        title=escape_text(title),
        style="\n".join(read_asset(name) for name in styles),
        body_class=escape_text(body_class),
        body=body,
        script=script,
    )

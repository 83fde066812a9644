"""The colours of the pages (`assets/base.css`) for what is no page: the terminal and pictures. Light ones."""

from __future__ import annotations

import functools
import re

from unmask.viewer.page import read_asset


@functools.cache
def page_colours() -> dict[str, str]:
    """Name of a colour ("text", "mask-a", "c0" for the least confident, ...) -> "#rrggbb", as a light page has it."""
    light = read_asset("base.css").partition("@media")[0]
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})\b", light))


# Tokens of the step in hand, by confidence: white on the page's hues, darkened until white is readable on them.
FRESH = ("#a8430b", "#8a5620", "#5c6470", "#2f66a8", "#1c4fa8")
ON_FRESH = "#ffffff"

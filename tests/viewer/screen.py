"""A terminal small enough to read: what `rich` writes while it redraws, as the lines that a user would see."""

from __future__ import annotations

import re

from rich.cells import cell_len

# Text, newline, return, or one sequence: colours, erase the line, up, hide and show the cursor.
TOKEN = re.compile(
    r"\x1b\[(?P<number>[?\d;]*)(?P<kind>[A-Za-z])|(?P<control>[\r\n])|(?P<text>[^\x1b\r\n]+)|(?P<other>.)", re.DOTALL
)


class Screen:
    """`lines`: everything written so far, without colours; scrolled lines stay. Unknown sequences are an error."""

    def __init__(self, num_columns: int) -> None:
        self.num_columns, self.lines, self.row, self.is_cursor_hidden = num_columns, [""], 0, False

    def feed(self, text: str) -> Screen:
        for found in TOKEN.finditer(text):
            assert not found["other"], f"unexpected {found['other']!r}"
            if found["control"] == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            elif found["text"]:
                self.lines[self.row] += found["text"]
                assert cell_len(self.lines[self.row]) <= self.num_columns, self.lines[self.row]
            elif found["kind"] == "A":
                self.row -= int(found["number"] or 1)
                assert self.row >= 0
            elif found["kind"] == "K":
                self.lines[self.row] = ""
            elif found["kind"] in ("h", "l"):
                self.is_cursor_hidden = found["kind"] == "l"
            elif found["kind"]:
                assert found["kind"] == "m", f"unexpected sequence {found[0]!r}"
        return self

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self.lines).rstrip("\n")

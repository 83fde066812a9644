"""A canvas at one moment as lines of cells, for the terminal and for pictures: what is where, which blocks are open."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from rich.cells import cell_len

from unmask.types import Trace

NEWLINE = "↵"  # shown where a token breaks the line
BORDER = "│"
UNSHOWN = "�"  # for what no screen shows


@dataclass(slots=True)
class Canvas:
    """Canvas positions as they stand: an id where a token is, None where it is masked.

    block_size: 0 = no blocks. num_before: prompt tokens that head the first block. limit: the canvas ends here, be its last
    block whole or not; None = with a block. newest: positions of the last step.
    """

    block_size: int = 0
    num_before: int = 0
    limit: int | None = None
    ids: list[int | None] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)  # -1 = masked
    newest: frozenset[int] = frozenset()
    step: int = -1  # the last one; -1 = none yet

    @property
    def num_unmasked(self) -> int:
        return len(self.ids) - self.ids.count(None)

    @property
    def tokens_per_forward(self) -> float:
        return self.num_unmasked / max(1, self.step + 1)

    def grow(self, length: int) -> None:
        """At least so many positions; new ones are masked."""
        more = max(0, length - len(self.ids))
        self.ids += [None] * more
        self.confidences += [0.0] * more
        self.steps += [-1] * more

    def apply(self, step: int, positions: Sequence[int], ids: Sequence[int], confidences: Sequence[float]) -> None:
        """What a denoising step unmasked. A step that is not larger than the last one voids what came at or after it."""
        if step <= self.step:
            for i, old in enumerate(self.steps):
                if old >= step:
                    self.ids[i], self.confidences[i], self.steps[i] = None, 0.0, -1
        if positions:
            self.grow(self.block_end(max(positions)))
        for position, token, confidence in zip(positions, ids, confidences, strict=True):
            self.ids[position], self.confidences[position], self.steps[position] = token, confidence, step
        self.newest, self.step = frozenset(positions), step

    def block_end(self, position: int) -> int:
        """The position after the last of this one's block."""
        end = position + 1
        if self.block_size:
            end = ((position + self.num_before) // self.block_size + 1) * self.block_size - self.num_before
        return end if self.limit is None else min(end, self.limit)

    def borders(self) -> set[int]:
        """Positions that a block starts at, where it or the one before it still has masks; not the canvas's first."""
        if not self.block_size:
            return set()
        ends = [self.block_end(0)] if self.ids else []
        while ends and ends[-1] < len(self.ids):
            ends.append(self.block_end(ends[-1]))
        starts = [0, *ends]
        is_open = [None in self.ids[start:end] for start, end in zip(starts, ends, strict=False)]
        return {starts[i] for i in range(1, len(ends)) if is_open[i - 1] or is_open[i]}


def trace_canvas(trace: Trace) -> Canvas:
    """The canvas of a trace before its first step, as long as is worth showing.

    That is up to the end of the block in which the response ends: a full-attention canvas goes on with what nobody reads.
    """
    canvas = Canvas(trace.block_size, num_before(trace), len(trace.canvas_ids))
    canvas.grow(canvas.block_end(max(trace.num_response_tokens - 1, 0)))
    return canvas


def num_before(trace: Trace) -> int:
    """How many prompt tokens head the first block: those of a block model, none under full attention.

    A trace does not say which of the two it is; its steps do, since every block is finished before the next is begun. Where
    both would do, it is a block model's.
    """
    tail = len(trace.prompt_ids) % trace.block_size
    if tail and (len(trace.prompt_ids) + len(trace.canvas_ids)) % trace.block_size:
        return 0
    return tail if _is_ordered(trace, tail) or not _is_ordered(trace, 0) else 0


def _is_ordered(trace: Trace, first: int) -> bool:
    """Whether blocks, of which the first has `first` positions less, were finished one after the other."""
    blocks: dict[int, list[int]] = {}
    for i, step in enumerate(trace.step_map):
        if step >= 0:
            blocks.setdefault((i + first) // trace.block_size, []).append(step)
    ranges = [(min(steps), max(steps)) for steps in blocks.values()]
    return all(before[1] < after[0] for before, after in pairwise(ranges))


def shown_text(piece: str, token: int) -> str:
    """A token's text as a screen may show it: `[id]` without text, no control characters, newlines kept.

    What a model writes must not move the cursor or turn the writing around.
    """
    if not piece:
        return f"[{token}]"
    return "".join(_shown(character) for character in piece.replace("\r\n", "\n").replace("\t", "    "))


def _shown(character: str) -> str:
    if character in "\r\n\v\f\x85\u2028\u2029":
        return "\n"
    kind = unicodedata.category(character)
    if kind == "Cf" or "\ufe00" <= character <= "\ufe0f":  # marks of direction, joiners, variants: each has a width of its own
        return ""
    return UNSHOWN if kind in ("Cc", "Cs", "Co", "Cn") else character


@dataclass(frozen=True, slots=True)
class Run:
    """A piece of a line. position: of the canvas; -1 = the border before a block. column and width are cells."""

    position: int
    text: str
    column: int
    width: int


def flow(texts: Sequence[str], num_columns: int, borders: Collection[int] = ()) -> list[list[Run]]:
    """Texts one after the other (one per canvas position), in lines of at most `num_columns` cells (2 or more).

    A text goes to the next line rather than over the end, unless it is longer than a line. A newline shows as `NEWLINE`, and
    ends the line. Wide characters take two cells. borders: positions with a `BORDER` before them.
    """
    lines: list[list[Run]] = [[]]
    column = 0

    def put(position: int, text: str) -> None:
        nonlocal column
        width = cell_len(text)
        if column and column + width > num_columns:
            lines.append([])
            column = 0
        while width > num_columns:
            head = _fitting(text, num_columns)
            lines[-1].append(Run(position, head, 0, cell_len(head)))
            lines.append([])
            text = text[len(head) :]
            width = cell_len(text)
        if text:
            lines[-1].append(Run(position, text, column, width))
            column += width

    for position, text in enumerate(texts):
        if position in borders and column:
            put(-1, BORDER)
        first, *rest = text.split("\n")
        put(position, first + NEWLINE if rest else first)
        for i, part in enumerate(rest):
            lines.append([])
            column = 0
            put(position, part + NEWLINE if i + 1 < len(rest) else part)
    return lines


def _fitting(text: str, num_cells: int) -> str:
    """The longest beginning that fits; one character at least."""
    width = 0
    for i, character in enumerate(text):
        width += cell_len(character)
        if width > num_cells:
            return text[: max(1, i)]
    return text

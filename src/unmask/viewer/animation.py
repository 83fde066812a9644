"""The unmasking of an answer as an animated GIF, through Pillow. The one importer of Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len, set_cell_size

from unmask.errors import UnmaskError
from unmask.files import new_file
from unmask.types import TraceRecord
from unmask.types.levels import LEVELS, level
from unmask.viewer.flow import Canvas, Run, flow, shown_text, trace_canvas
from unmask.viewer.palette import FRESH, ON_FRESH, page_colours
from unmask.viewer.picture import monospace_font

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_FRAMES = 120  # steps beyond that share frames
DURATION_MS = 10_000  # of all steps, within the bounds of one frame
MIN_FRAME_MS, MAX_FRAME_MS, FIRST_MS, LAST_MS = 50, 280, 700, 3_000

FONT_SIZE, LINE_HEIGHT, MARGIN, GAP, GAP_BELOW_PROMPT = 15, 23, 18, 26, 8  # pixels
NUM_COLUMNS, NUM_COLUMNS_EACH = 72, 50  # of one answer; of each of two side by side
MAX_LINES, MAX_PROMPT_LINES = 28, 2
GLYPHLESS = "▯"  # for a character that the font lacks


def check_animation(path: Path) -> None:
    """Raises `UnmaskError` where an animation cannot be drawn: Pillow is not installed, or the name is another format's."""
    if path.suffix.lower() != ".gif":
        raise UnmaskError(f"{path}: an animation is a GIF; give it a name that ends in .gif")
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UnmaskError(f"{path}: drawing needs pillow, which is not installed: pip install 'unmask[plot]'") from None


def draw_animation(records: Sequence[TraceRecord], path: Path, labels: Sequence[str] = ()) -> None:
    """Writes how one record, or two side by side, were unmasked; the last frame is held for a while, and all begins again.

    labels: names of the two. Side by side both take their steps at the same time, and the shorter one waits. What is masked
    has the place of its token from the beginning, so that nothing moves; of an answer that is too long for the picture, the
    part around the newest tokens is shown. Raises `UnmaskError` for another file name, without Pillow, and where the file
    cannot be written.
    """
    check_animation(path)
    frames, durations = make_frames(records, labels)
    with new_file(path) as temporary:
        frames[0].save(
            temporary, format="GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True,
            disposal=1,
        )  # fmt: skip


def make_frames(records: Sequence[TraceRecord], labels: Sequence[str] = ()) -> tuple[list[Image], list[int]]:
    """The pictures (one palette for all) and how long each is shown, in ms. First nothing is unmasked, last all is."""
    from PIL import Image

    num_columns = NUM_COLUMNS if len(records) == 1 else NUM_COLUMNS_EACH
    names = labels or [""] * len(records)
    panels = [Panel.of(record, num_columns, name) for record, name in zip(records, names, strict=True)]
    num_steps = max(panel.num_steps for panel in panels)
    every = max(1, -(-num_steps // (MAX_FRAMES - 1)))
    ends = sorted({*range(every, num_steps, every), num_steps} - {0})  # a frame shows the steps before its end
    cell = cell_width()
    width = len(panels) * num_columns * cell + (len(panels) - 1) * GAP + 2 * MARGIN
    num_rows = max(panel.num_rows for panel in panels)
    height = (num_rows + 2) * LINE_HEIGHT + GAP_BELOW_PROMPT + 2 * MARGIN
    palette = _palette_image()
    frames = []
    for before, end in zip([0, 0, *ends], [0, *ends], strict=False):
        picture = Image.new("RGB", (width, height), page_colours()["card"])
        for i, panel in enumerate(panels):
            panel.draw(picture, MARGIN + i * (num_columns * cell + GAP), MARGIN, before, end)
        _draw_legend(picture, MARGIN, height - MARGIN - LINE_HEIGHT + 4)
        frames.append(picture.quantize(palette=palette, dither=Image.Dither.NONE))
    each = min(MAX_FRAME_MS, max(MIN_FRAME_MS, DURATION_MS // max(1, len(frames))))
    return frames, [FIRST_MS, *[each] * (len(frames) - 2), LAST_MS][-len(frames) :]


@dataclass(slots=True)
class Panel:
    """One answer: where everything is, and when it appears.

    canvas: with the steps and confidences of the end.
    """

    record: TraceRecord
    canvas: Canvas
    label: str
    prompt: list[str]
    lines: list[list[Run]]
    num_columns: int

    @classmethod
    def of(cls, record: TraceRecord, num_columns: int, label: str) -> Panel:
        trace = record.trace
        canvas = trace_canvas(trace)
        length = len(canvas.ids)
        pieces = record.canvas_pieces or [""] * len(trace.canvas_ids)
        texts = [drawable(shown_text(p, i)) or " " for p, i in zip(pieces[:length], trace.canvas_ids[:length], strict=True)]
        texts = [text if step >= 0 else "  " for text, step in zip(texts, trace.step_map[:length], strict=True)]
        canvas.steps[:] = trace.step_map[:length]
        canvas.confidences[:] = trace.confidences[:length]
        return cls(record, canvas, label, _shorten(_question(record), num_columns), flow(texts, num_columns), num_columns)

    @property
    def num_steps(self) -> int:
        return max(self.record.trace.num_forwards, max(self.canvas.steps, default=-1) + 1)

    @property
    def num_rows(self) -> int:
        return bool(self.label) + len(self.prompt) + min(len(self.lines), MAX_LINES) + 1

    def draw(self, picture: Image, left: int, top: int, before: int, end: int) -> None:
        """The state after the steps below `end`; those from `before` on are new."""
        colours = page_colours()
        row = top
        if self.label:
            label = set_cell_size(drawable(shown_text(self.label, 0)), self.num_columns).rstrip()
            _write(picture, left, row, label, colours["card"], colours["text"])
            row += LINE_HEIGHT
        for text in self.prompt:
            _write(picture, left, row, text, colours["card"], colours["muted"])
            row += LINE_HEIGHT
        row += GAP_BELOW_PROMPT
        steps = self.canvas.steps
        newest = {i for i, step in enumerate(steps) if before <= step < end}
        open_ends = {self.canvas.block_end(i) for i, step in enumerate(steps) if not 0 <= step < end}
        for line in self._window(newest):
            for run in line:
                x, new = left + run.column * cell_width(), run.position in newest and end < self.num_steps
                if 0 <= steps[run.position] < end:
                    self._draw_token(picture, x, row, run, new)
                else:
                    is_current = self.canvas.block_end(run.position) == min(open_ends)
                    _draw_mask(picture, x, row, run.width, "mask-a" if is_current else "mask-b")
                self._draw_border(picture, x, row, run.position, open_ends)
            row += LINE_HEIGHT
        _write(picture, left, row + 6, self._status(min(end, self.num_steps)), colours["card"], colours["muted"])

    def _draw_token(self, picture: Image, x: int, y: int, run: Run, is_new: bool) -> None:
        colours, rank = page_colours(), level(self.canvas.confidences[run.position])
        if is_new:
            ground, ink = FRESH[rank], ON_FRESH
        elif run.position >= self.record.trace.num_response_tokens:
            ground, ink = colours["card"], colours["muted"]
        else:
            ground, ink = colours[f"c{rank}"], colours["text"]
        _write(picture, x, y, run.text, ground, ink)

    def _draw_border(self, picture: Image, x: int, y: int, position: int, open_ends: set[int]) -> None:
        """A line where a block starts, while it or the one before it has masks."""
        end_before = self.canvas.block_end(position - 1) if position else 0
        if 0 < position == end_before and open_ends & {end_before, self.canvas.block_end(position)}:
            picture.paste(page_colours()["accent"], (x - 1, y + 1, x, y + LINE_HEIGHT - 1))

    def _window(self, newest: set[int]) -> list[list[Run]]:
        if len(self.lines) <= MAX_LINES:
            return self.lines
        where = [i for i, line in enumerate(self.lines) if any(run.position in newest for run in line)]
        middle = (where[0] + where[-1]) // 2 if where else 0
        first = min(max(0, middle - MAX_LINES // 2), len(self.lines) - MAX_LINES)
        return self.lines[first : first + MAX_LINES]

    def _status(self, end: int) -> str:
        trace = self.record.trace
        response = self.canvas.steps[: trace.num_response_tokens]
        num = sum(0 <= step < end for step in response)
        step = f"step {end:>{len(str(self.num_steps))}} of {self.num_steps}"
        long, short = (
            f"{step}   {num} tokens   {num / max(1, end):.2f} {what}" for what in ("tokens per forward", "per forward")
        )
        return long if len(long) <= self.num_columns else short


def _question(record: TraceRecord) -> str:
    text = record.prompt_text or "".join(record.prompt_pieces)
    return drawable(shown_text(" ".join(text.split()) or record.id, 0))


def _shorten(text: str, num_columns: int) -> list[str]:
    """The text in lines, at most `MAX_PROMPT_LINES`, broken between words."""
    words = [word + " " for word in text.split(" ")]
    lines = ["".join(run.text for run in line) for line in flow(words, num_columns)]
    if len(lines) > MAX_PROMPT_LINES:
        lines = lines[:MAX_PROMPT_LINES]
        lines[-1] = set_cell_size(lines[-1].rstrip(), min(num_columns - 1, cell_len(lines[-1].rstrip()))) + "…"
    return lines


def drawable(text: str) -> str:
    """The text with `GLYPHLESS` for what the font cannot draw, of the same width."""
    return "".join(c if c == "\n" or has_glyph(c) else GLYPHLESS * max(1, cell_len(c)) for c in text)


@cache
def has_glyph(character: str) -> bool:
    """Whether the font has the character: it draws something else than for a code point that is none."""
    font = _font()
    return bytes(font.getmask(character)) != bytes(font.getmask("\U0010ffff")) or character == "□"


@cache
def _font() -> Any:
    from PIL import ImageFont

    path = monospace_font()
    return ImageFont.load_default(FONT_SIZE) if path is None else ImageFont.truetype(str(path), FONT_SIZE)


@cache
def cell_width() -> int:
    """Pixels. A font that is no monospace one has the cells of its widest letter."""
    return round(_font().getlength("0" if monospace_font() else "M"))


def _write(picture: Image, x: int, y: int, text: str, ground: str, ink: str) -> None:
    """One line of text, its first cell at x, in a line of pixels that begins at y."""
    picture.paste(_tile(text, ground, ink), (x, y + 1))


@lru_cache(maxsize=10_000)  # every token is in most of the frames
def _tile(text: str, ground: str, ink: str) -> Image:
    from PIL import Image, ImageDraw

    tile = Image.new("RGB", (cell_len(text) * cell_width(), LINE_HEIGHT - 2), ground)
    draw, x = ImageDraw.Draw(tile), 0
    for character in text:
        cells = cell_len(character)
        if character != " ":  # what takes no cell is an accent on the one before
            middle = x + (cells or -1) * cell_width() / 2, tile.height / 2
            draw.text(middle, character, ink, _font(), anchor="mm")
        x += cells * cell_width()
    return tile


def _draw_mask(picture: Image, x: int, y: int, width: int, colour: str) -> None:
    picture.paste(page_colours()[colour], (x + 1, y + 4, x + width * cell_width() - 1, y + LINE_HEIGHT - 4))


def _draw_legend(picture: Image, x: int, y: int) -> None:
    colours = page_colours()
    parts = [("confidence", colours["card"], colours["muted"])]
    for rank, limit in enumerate((0.0, *LEVELS)):
        parts.append((f" {limit:g} ".replace(" 0.", " ."), colours[f"c{rank}"], colours["text"]))
    for text, ground, ink in [*parts, (" new ", FRESH[-1], ON_FRESH)]:
        _write(picture, x, y, text, ground, ink)
        x += len(text) * cell_width() + 6


@cache
def _palette_image() -> Image:
    """A picture with the colours of all frames: each ink on each ground, and the steps between them that smooth the letters."""
    from PIL import Image, ImageColor

    colours = page_colours()
    grounds = [colours["card"], *(colours[f"c{rank}"] for rank in range(len(LEVELS) + 1))]
    pairs = [(ground, colours["text"]) for ground in grounds] + [(ground, ON_FRESH) for ground in FRESH]
    pairs.append((colours["card"], colours["muted"]))
    steps = 16
    found = {ImageColor.getrgb(colours[name]): None for name in ("mask-a", "mask-b", "accent")}
    for ground, ink in pairs:
        a, b = ImageColor.getrgb(ground), ImageColor.getrgb(ink)
        for i in range(steps):
            found[tuple(round(p + (q - p) * i / (steps - 1)) for p, q in zip(a[:3], b[:3], strict=True))] = None  # type: ignore[index]
    image = Image.new("P", (1, 1))
    image.putpalette([value for colour in list(found)[:256] for value in colour])
    return image

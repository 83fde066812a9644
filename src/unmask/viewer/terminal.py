"""An answer being unmasked, drawn in a terminal: tokens appear in place, coloured by confidence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.style import Style
from rich.text import Text

from unmask.types import Trace
from unmask.types.levels import LEVELS, level
from unmask.viewer.flow import Canvas, Run, flow, shown_text
from unmask.viewer.palette import FRESH, ON_FRESH, page_colours

MASK = "▒▒"
MIN_COLUMNS = 8
TOKENS_OF_A_CHARACTER = 4  # at most
ENDED = {"stop": "ended by itself", "length": "cut at the limit", "abort": "stopped"}
DIM = Style(dim=True)

Share = Callable[[Sequence[int]], list[str]]


class Watcher:
    """Context manager that draws one answer after the other.

        with Watcher(console, tokenizer.shares) as watcher:
            watcher.begin("what was asked", block_size=4, num_before=3)
            watcher.show(step, positions, ids, confidences)
            watcher.end(trace)

    console: a terminal. to_texts: tokens -> the share of each in the text, "" for one whose text is with a later one (a part
    of a character). While an answer is unmasked, the part of it around the newest tokens is shown; when it has ended, all of
    it stays on the screen.
    """

    def __init__(self, console: Console, to_texts: Share) -> None:
        self.console, self.to_texts = console, to_texts
        self.canvas, self.texts, self.title = Canvas(), Texts(to_texts), ""
        self._live: Live | None = None

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """What stands when drawing is interrupted is left as it is, the cursor where a shell wants it."""
        if self._live is not None:
            self._live.transient = False
            self._close()

    def begin(self, title: str, *, block_size: int, num_before: int = 0, num_masked: int | None = None) -> None:
        """A new answer. num_masked: positions of a canvas that is there from the start (full attention); None = its blocks
        come one by one."""
        self.title = shown_text(" ".join(title.split()), 0)
        self.canvas, self.texts = Canvas(block_size, num_before, num_masked), Texts(self.to_texts)
        self.canvas.grow(num_masked or self.canvas.block_end(0))
        # Drawn when there is something new, by this thread: nothing is left behind where the decoding fails.
        self._live = Live(
            _Drawing(self.title, self.canvas, self.texts), console=self.console, auto_refresh=False, transient=True,
            redirect_stdout=False, redirect_stderr=False, vertical_overflow="crop",
        )  # fmt: skip
        self._live.start(refresh=True)

    def show(self, step: int, positions: Sequence[int], ids: Sequence[int], confidences: Sequence[float]) -> None:
        """What one denoising step has unmasked; as `Canvas.apply`."""
        assert self._live is not None
        self.canvas.apply(step, positions, ids, confidences)
        self._live.refresh()

    def end(self, trace: Trace) -> None:
        """The answer has ended: it is printed whole, in its colours."""
        self._close()
        self.console.print(_Drawing(self.title, self.canvas, self.texts, trace), end="")

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class _Drawing:
    """What is drawn, made anew for the size that the terminal has then. trace: of an answer that has ended."""

    def __init__(self, title: str, canvas: Canvas, texts: Texts, trace: Trace | None = None):
        self.title, self.canvas, self.texts, self.trace = title, canvas, texts, trace

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(MIN_COLUMNS, options.max_width)
        title = Text(self.title, style="bold", no_wrap=True, overflow="ellipsis")
        title.truncate(width, overflow="ellipsis")
        status = [line for fact in _pack(self._facts(), width) for line in Text(fact, style=DIM).wrap(console, width)]
        texts = self.texts.of(self.canvas)
        if self.trace is not None:  # masks that no step has come to are no part of the answer
            texts = texts[: max((i + 1 for i, token in enumerate(self.canvas.ids) if token is not None), default=0)]
        lines = flow(texts, width, self.canvas.borders() if self.trace is None else ())
        if self.trace is None:
            lines = window(lines, self.canvas.newest, max(1, options.size.height - len(status) - 3))
        yield title
        for line in lines:
            yield self._draw(line)
        yield from status
        if self.trace is not None:
            yield Text()
        else:
            yield _legend(width)

    def _facts(self) -> list[str]:
        c = self.canvas
        if self.trace is not None:
            t = self.trace
            speed = f"{t.tokens_per_forward:.2f} tokens per forward"
            return [
                f"{t.num_response_tokens} tokens in {t.num_forwards} step{'s' * (t.num_forwards != 1)}",
                speed,
                ENDED[t.finish_reason],
            ]
        if c.step < 0:
            return ["reading the prompt"]
        return [
            f"step {c.step + 1}", f"+{len(c.newest)}", f"{c.tokens_per_forward:.2f} tokens per forward",
            f"{c.num_unmasked} of {len(c.ids)} unmasked",
        ]  # fmt: skip

    def _draw(self, line: Sequence[Run]) -> Text:
        text = Text(no_wrap=True, end="")
        for run in line:
            text.append(run.text, self._style(run.position))
        return Text.assemble(text)

    def _style(self, position: int) -> Style:
        if position < 0 or self.canvas.ids[position] is None:
            return DIM
        after = self.trace is not None and position >= self.trace.num_response_tokens
        if after:
            return Style(dim=True, italic=True)
        rank = level(self.canvas.confidences[position])
        if self.trace is None and position in self.canvas.newest:
            return Style(bold=True, color=ON_FRESH, bgcolor=FRESH[rank])
        colours = page_colours()
        return Style(color=colours["text"], bgcolor=colours[f"c{rank}"])


class Texts:
    """What is shown for each position of a growing canvas: text for tokens, `MASK` for the others."""

    def __init__(self, to_texts: Share) -> None:
        self.to_texts = to_texts
        self._ids: list[int | None] = []  # of tokens at the beginning whose texts cannot change any more
        self._texts: list[str] = []

    def of(self, canvas: Canvas) -> list[str]:
        """Tokens that stand side by side are turned into text together: a character may be spread over several."""
        ids = canvas.ids
        if ids[: len(self._ids)] != self._ids:  # a step was voided
            self._ids, self._texts = [], []
        first = len(self._ids)
        texts = list(self._texts)
        while len(texts) < len(ids):
            side_by_side = list(takewhile(lambda token: token is not None, ids[len(texts) :]))
            if side_by_side:
                tokens = [token for token in side_by_side if token is not None]
                # A part of a character shows nothing of its own: the character is with the last of its tokens.
                shares = zip(self.to_texts(tokens), tokens, strict=True)
                texts += [shown_text(share, token) if share else "" for share, token in shares]
            else:
                texts.append(MASK)
        settled = sum(1 for _ in takewhile(lambda token: token is not None, ids)) - TOKENS_OF_A_CHARACTER
        while settled > first and not texts[settled - 1]:
            settled -= 1
        if settled > first:
            self._ids, self._texts = ids[:settled], texts[:settled]
        return texts


def window(lines: list[list[Run]], newest: frozenset[int], height: int) -> list[list[Run]]:
    """At most `height` of the lines: those around the newest tokens, or else the last ones."""
    if len(lines) <= height:
        return lines
    where = [i for i, line in enumerate(lines) if any(run.position in newest for run in line)]
    middle = (where[0] + where[-1]) // 2 if where else len(lines)
    first = min(max(0, middle - height // 2), len(lines) - height)
    return lines[first : first + height]


def _pack(facts: Sequence[str], width: int) -> list[str]:
    """The facts side by side in as few lines as they fit into; a longer one has a line of its own."""
    lines = list(facts[:1])
    for fact in facts[1:]:
        joined = f"{lines[-1]} · {fact}"
        lines[-1:] = [joined] if len(joined) <= width else [lines[-1], fact]
    return lines


def _legend(width: int) -> Text:
    colours = page_colours()
    legend = Text()
    legend.append("confidence ", DIM)
    for rank, limit in enumerate((0.0, *LEVELS)):
        legend.append(f" {limit:g} ".replace(" 0.", " ."), Style(color=colours["text"], bgcolor=colours[f"c{rank}"]))
    legend.append(" ")
    legend.append(" new ", Style(bold=True, color=ON_FRESH, bgcolor=FRESH[-1]))
    legend.truncate(width)
    return legend

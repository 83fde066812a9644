"""`unmask generate --watch`: one prompt at a time, every denoising step drawn in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.engine import Engine, RequestOutput
    from unmask.types import Example, SamplingParams


def check_terminal() -> None:
    """Raises `UnmaskError` where stdout is no terminal that can be drawn in."""
    from rich.console import Console

    if not sys.stdout.isatty() or Console().is_dumb_terminal:
        raise UnmaskError(
            "--watch draws in a terminal, which the output is not; leave --watch out, or write an animation with --gif"
        )


def title_of(example: Example, member: int, num_responses: int) -> str:
    """What stands above an answer: the last turn, and which of several answers to it this is."""
    number = f"[{member + 1}/{num_responses}] " if num_responses > 1 else ""
    return number + example.messages[-1].content


def watch(
    engine: Engine, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], titles: Sequence[str],
    to_texts: Callable[[Sequence[int]], list[str]],
) -> Generator[tuple[int, RequestOutput]]:  # fmt: skip
    """As `engine.stream`, but one prompt after the other and drawn while it goes on. Closing it aborts what is left.

    One at a time is slower than together and decodes the same: sequences do not depend on their neighbours.
    """
    from rich.console import Console

    from unmask.viewer.terminal import Watcher

    for i, (prompt, p) in enumerate(zip(prompts, params, strict=True)):
        engine.check(prompt, p, name=f"prompt {i}")
    spec = engine.model.spec
    with Watcher(Console(highlight=False), to_texts) as watcher:
        for i, (prompt, p, title) in enumerate(zip(prompts, params, titles, strict=True)):
            block_size = p.block_size or spec.block_size
            if spec.attention == "block_causal":
                watcher.begin(title, block_size=block_size, num_before=len(prompt) % block_size)
            else:
                watcher.begin(title, block_size=block_size, num_masked=p.max_new_tokens)
            request_id = engine.add_request(prompt, p, name=f"prompt {i}", reports_steps=True)
            try:
                while engine.has_work:
                    for news in engine.step():
                        if (unmasked := news.unmasked) is not None:
                            watcher.show(unmasked.step, unmasked.positions, unmasked.ids, unmasked.confidences)
                        if news.trace is not None:
                            watcher.end(news.trace)
                        yield i, news
            finally:
                with suppress(UnmaskError):  # it has ended, as all but those that are interrupted have
                    engine.abort(request_id)

"""Made-up traces, and a headless Chromium driven by scripts that the tests put into the page."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.viewer.fake_server import FakeServer, serve
from unmask.types import Trace, TraceRecord
from unmask.viewer import render_live

if TYPE_CHECKING:
    from playwright.sync_api import Browser as Chromium
    from playwright.sync_api import Page

# 9+4+7-2=? in a prompt of 11 tokens with blocks of 4: three prompt tokens head the first block.
PROMPT = ["<|im_start|>", *"9+4+7-2=?", "\n"]
ANSWER = [*"9+4=3;3+7=0;0-2=8;", "\\boxed", "{", "8", "}", "<|im_end|>"]
AFTER_STOP = ["<|pad|>", "<|pad|>"]


def step_map(num_prompt: int, num_canvas: int, block_size: int, per_step: int) -> list[int]:
    """Blocks one after the other, `per_step` tokens a denoising step, from the right of a block to its left."""
    steps: list[int] = []
    while len(steps) < num_canvas:
        size = min(block_size - (num_prompt + len(steps)) % block_size, num_canvas - len(steps))
        first = max(steps, default=-1) + 1
        steps += [first + k // per_step for k in reversed(range(size))]
    return steps


MakeRecord = Callable[..., TraceRecord]


@pytest.fixture
def make_record() -> MakeRecord:
    def make(record_id: str = "q1", per_step: int = 2, reward: float | None = 1.0, **changes: Any) -> TraceRecord:
        pieces = changes.pop("pieces", [*ANSWER, *AFTER_STOP])
        num_response = changes.pop("num_response", min(len(ANSWER), len(pieces)))
        steps = step_map(len(PROMPT), len(pieces), 4, per_step)
        confidences = [0.4 + 0.59 * (i % 7) / 6 for i in range(len(pieces))]
        trace = Trace(
            prompt_ids=list(range(100, 100 + len(PROMPT))),
            canvas_ids=list(range(len(pieces))),
            step_map=steps,
            logprobs=[math.log(value) for value in confidences],
            confidences=confidences,
            num_response_tokens=num_response,
            block_size=4,
            num_forwards=max(steps) + 1,
            finish_reason="stop",
        )
        fields = {
            "prompt_text": "9+4+7-2=?",
            "response_text": "".join(pieces[:num_response]),
            "prompt_pieces": PROMPT,
            "canvas_pieces": pieces,
            "answer": "8",
            "reward": reward,
        }
        return TraceRecord(id=record_id, trace=trace, **{**fields, **changes})

    return make


CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
CALM = "--force-prefers-reduced-motion"

# Runs before any script of a page: what goes wrong is collected for `outcome.problems`.
WATCH = """
window.problems = [];
addEventListener("error", (event) => problems.push("error: " + event.message));
addEventListener("unhandledrejection", (event) => problems.push("rejection: " + event.reason));
addEventListener("securitypolicyviolation", (event) => problems.push("policy: " + event.violatedDirective));
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(kind + ": " + words.join(" "));
window.alert = (text) => problems.push("alert: " + text);
"""

# For scenarios, which are bodies of async functions.
HELPERS = """
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const find = (selector) => document.querySelector(selector);
const findAll = (selector) => Array.from(document.querySelectorAll(selector));
const texts = (selector) => findAll(selector).map((node) => node.textContent);
const press = (key, node = document.body) =>
  node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
"""


class Browser:
    """Pages under their own policy, each in a fresh profile, in one Chromium."""

    def __init__(self, chromium: Chromium, folder: Path) -> None:
        self.chromium, self.folder, self.num_pages = chromium, folder, 0
        self.contexts: list[Any] = []

    def show(self, page: str, *flags: str, **options: Any) -> Page:
        """Open a page given as its text or as an address. `CALM` = a reader who wants less motion; `options` are those of
        playwright's `new_context`, e.g. viewport={"width": 360, "height": 740}, color_scheme="dark"."""
        options.setdefault("viewport", {"width": 1280, "height": 900})
        self.close()  # of a test, only the last page is alive
        context = self.chromium.new_context(reduced_motion="reduce" if CALM in flags else "no-preference", **options)
        self.contexts.append(context)
        context.set_default_timeout(20_000)
        context.add_init_script(WATCH)
        shown = context.new_page()
        if page.startswith("http://"):
            shown.goto(page)
        else:
            self.num_pages += 1
            path = self.folder / f"page{self.num_pages}.html"
            path.write_text(page, encoding="utf-8")
            shown.goto(path.as_uri())
        return shown

    def close(self) -> None:
        while self.contexts:
            self.contexts.pop().close()

    def open(self, page: str, *flags: str, budget_ms: int = 1000) -> tuple[str, list[str]]:
        """The document as text after `budget_ms`, and what went wrong in it."""
        shown = self.show(page, *flags)
        shown.wait_for_timeout(budget_ms)
        return shown.content(), shown.evaluate("problems")

    def run(self, page: str, scenario: str, *flags: str, **options: Any) -> dict[str, Any]:
        """What `scenario` (JavaScript with `await` and the `HELPERS`) returns, with `problems` added."""
        shown = self.show(page, *flags, **options)
        return act(shown, scenario)


def act(page: Page, scenario: str) -> dict[str, Any]:
    """Run a scenario in a page that is shown already."""
    return page.evaluate(f"async () => {{ {HELPERS} return {{ ...await (async () => {{ {scenario} }})(), problems }}; }}")


def wait_until(page: Page, expression: str) -> None:
    """Wait for a JavaScript expression to become true (playwright's own way needs `eval`, which our pages forbid)."""
    for _ in range(400):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never true: {expression}")


@contextmanager
def start_browser(folder: Path) -> Iterator[Browser]:
    names = [os.environ["UNMASK_CHROMIUM"]] if "UNMASK_CHROMIUM" in os.environ else CHROMIUM_NAMES
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no Chromium: set UNMASK_CHROMIUM or install one of {', '.join(CHROMIUM_NAMES)}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=list(CHROMIUM_FLAGS))
        browser = Browser(chromium, folder)
        yield browser
        browser.close()
        chromium.close()


# Playwright keeps an event loop running in this thread: as long as its browser lives, `asyncio.run` fails. So the modules that
# test nothing but pages share one, and a test among others has its own.
@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with start_browser(tmp_path_factory.mktemp("pages")) as browser:
        yield browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    with start_browser(tmp_path) as browser:
        yield browser


DEFAULTS = {
    "remasking_strategy": "low_confidence_dynamic", "confidence_threshold": 0.9, "temperature": 1.0, "max_tokens": 64,
    "block_size": 4, "denoising_steps_per_block": None, "seed": None,
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[FakeServer]:
    page = render_live("unmask serve", model_name="tiny-sdar", attention="block_causal", block_size=4, defaults=DEFAULTS)
    with serve(page) as fake:
        yield fake


@pytest.fixture
def live(pages: Browser, server: FakeServer) -> Page:
    """The page as it is before the first question."""
    return pages.show(server.url, CALM)

"""Made-up traces, and a headless Chromium driven by scripts that the tests put into the page."""

from __future__ import annotations

import html
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unmask.types import Trace, TraceRecord

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
CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--window-size=1280,900",
)  # fmt: skip

# Runs before any script of the page: what goes wrong is collected for `outcome.problems`.
WATCH = """<script>
window.problems = [];
addEventListener("error", (event) => problems.push("error: " + event.message));
addEventListener("unhandledrejection", (event) => problems.push("rejection: " + event.reason));
for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(kind + ": " + words.join(" "));
window.alert = (text) => problems.push("alert: " + text);
</script>"""

# Runs after them: `scenario` is the body of an async function; what it returns comes back to the test as JSON.
ACT = """<script>
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const find = (selector) => document.querySelector(selector);
const findAll = (selector) => Array.from(document.querySelectorAll(selector));
const texts = (selector) => findAll(selector).map((node) => node.textContent);
const press = (key, node = document.body) =>
  node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
(async () => { %s })().catch((error) => ({ failed: String(error) })).then((outcome) => {
  const node = document.createElement("pre");
  node.id = "outcome";
  node.textContent = JSON.stringify({ ...outcome, problems });
  document.body.append(node);
});
</script>"""


class Browser:
    """Opens pages in a new, empty profile each time and reads the document as it is after `budget_ms` virtual time."""

    def __init__(self, program: str, folder: Path) -> None:
        self.program, self.folder, self.num_runs = program, folder, 0

    def open(self, page: str, *flags: str, budget_ms: int = 40_000) -> tuple[str, list[str]]:
        """The document as text, and the console messages of the page."""
        self.num_runs += 1
        path = self.folder / f"page{self.num_runs}.html"
        path.write_text(page, encoding="utf-8")
        command = [
            self.program, *CHROMIUM_FLAGS, *flags, f"--user-data-dir={self.folder / f'profile{self.num_runs}'}",
            f"--virtual-time-budget={budget_ms}", "--dump-dom", path.as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    def run(self, page: str, scenario: str, *flags: str) -> dict[str, Any]:
        """What `scenario` (JavaScript with `await` and the helpers of `ACT`) returns, with `problems` added."""
        # The page's policy allows its own scripts only; here the test's join them.
        page = re.sub(r"script-src '[^']*'", "script-src 'unsafe-inline'", page)
        page = page.replace("<title>", WATCH + "<title>", 1)
        head, _, tail = page.rpartition("</body>")
        document, _ = self.open(head + ACT % scenario + "</body>" + tail, *flags)
        found = re.search(r'<pre id="outcome">(.*?)</pre>', document, re.DOTALL)
        assert found, f"the scenario did not come to its end: {document[-2000:]}"
        return json.loads(html.unescape(found[1]))


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    names = [os.environ["UNMASK_CHROMIUM"]] if "UNMASK_CHROMIUM" in os.environ else CHROMIUM_NAMES
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip(f"no Chromium: set UNMASK_CHROMIUM or install one of {', '.join(CHROMIUM_NAMES)}")
    return Browser(program, tmp_path)

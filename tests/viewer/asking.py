"""What the tests of the live page do: ask, and wait for what comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.viewer.conftest import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

CUT_OFF = "The connection ended before the answer was finished."
STATE = "unmaskPlayer.state()"


def ask(page: Page, question: str = "9+4+7-2=?") -> None:
    page.get_by_label("Your question").fill(question)
    page.get_by_label("Your question").press("Enter")


def wait_for_end(page: Page, problem: bool = False) -> None:
    wait_until(page, "!document.querySelector('[data-role=send]').disabled")
    assert page.evaluate("problems") == []
    assert bool(page.text_content('[data-role="problem"]')) is problem


def wait_for_steps(page: Page, num: int) -> dict[str, Any]:
    wait_until(page, f"{STATE}.numSteps === {num}")
    return page.evaluate(STATE)

"""No page has a finding of axe, light and dark, wide and narrow; everything can be done with the keyboard."""

from __future__ import annotations

import json

import pytest

from tests.viewer.conftest import CALM, act, wait_until
from tests.viewer.fake_server import Gate, Reply, answer, end_chunks, serve, start_chunk, step_chunks
from unmask.viewer import render_live, render_player

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
SIZES = {"wide": {"width": 1280, "height": 900}, "phone": {"width": 360, "height": 740}}


def findings(page) -> list[str]:
    violations = axe.Axe().run(page).response["violations"]
    return [
        f"{violation['impact']} {violation['id']}: {node['target']} {node['failureSummary']}"
        for violation in violations
        for node in violation["nodes"]
    ]


@pytest.fixture(
    params=[
        ("wide", "light"), ("phone", "dark"), pytest.param(("wide", "dark"), marks=pytest.mark.slow),
        pytest.param(("phone", "light"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)  # fmt: skip
def look(request):
    size, scheme = request.param
    return {"viewport": SIZES[size], "color_scheme": scheme, "bypass_csp": True}  # axe is a script of its own


@pytest.fixture
def live_page():
    return render_live("unmask serve", model_name="tiny", attention="block_causal", block_size=4, defaults={"max_tokens": 64})


def test_the_player(pages, make_record, look):
    records = [make_record(per_step=1, reward=0.0), make_record("q2", reward=0.5)]
    page = pages.show(render_player(records, "Traces", [make_record(), make_record("q2")]), CALM, **look)
    assert findings(page) == []
    page.evaluate("unmaskPlayer.goTo(9)")
    page.focus('[data-index="3"]')
    assert findings(page) == []
    page.check('input[value="step"]', force=True)
    page.evaluate("unmaskPlayer.goTo(99)")
    page.set_input_files("input[type=file]", {"name": "x", "mimeType": "", "buffer": b"{"})
    wait_until(page, "document.querySelector('#file-problem').textContent !== ''")
    page.evaluate("document.querySelector('#drop').hidden = false")
    assert findings(page) == []


def test_the_live_page(pages, make_record, live_page, look):
    record, gate = make_record(), Gate()
    with serve(live_page) as server:
        script = [start_chunk(record), *step_chunks(record)[:5], gate, *step_chunks(record)[5:], *end_chunks(record)]
        server.reply = lambda body: Reply(script)
        page = pages.show(server.url, CALM, **look)
        page.click("summary")
        assert findings(page) == []
        page.fill('[data-role="question"]', "?")
        page.click('[data-role="send"]')
        wait_until(page, "unmaskPlayer.state().numSteps === 5")
        assert findings(page) == []
        gate.open()
        wait_until(page, "!document.querySelector('[data-role=send]').disabled")
        server.reply = lambda body: Reply(status=500)
        page.click('[data-role="send"]')
        wait_until(page, "document.querySelector('[data-role=problem]').textContent !== ''")
        assert findings(page) == []


def test_everything_can_be_reached_with_the_tabulator(pages, make_record, live_page):
    with serve(live_page) as server:
        server.reply = lambda body: answer(make_record())
        page = pages.show(server.url, CALM)
        page.focus('[data-role="question"]')
        page.keyboard.type("9+4+7-2=?\n")
        wait_until(page, "unmaskPlayer.state().panels.some((panel) => panel.isDone)")
        wait_until(page, "!document.querySelector('[data-role=send]').disabled")
        name = "(document.activeElement.dataset.role || document.activeElement.name || document.activeElement.tagName)"
        page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
        page.focus('[data-role="open"]')
        reached = [page.evaluate(name)]
        while len(reached) < 15:
            page.keyboard.press("Tab")
            reached.append(page.evaluate(name))
        assert reached == [
            "open", "download", "question", "compare", "send", "SUMMARY", "record", "colour", "SPAN", "play", "back", "forward",
            "scrub", "speed", "BODY",
        ]  # fmt: skip
        page.focus('[data-role="play"]')
        for key in ("Home", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        assert page.evaluate("unmaskPlayer.state().step") == 2
        page.focus('[data-role="scrub"]')
        page.keyboard.press("ArrowRight")
        assert page.evaluate("unmaskPlayer.state().step") == 3
        page.keyboard.press(" ")
        assert page.evaluate("unmaskPlayer.state().isPlaying")


@pytest.mark.parametrize(("flags", "moves"), [((CALM,), ["0s", "none"]), ((), ["0.2s, 0.2s", "pulse"])])
def test_less_motion(pages, make_record, live_page, flags, moves):
    record, gate = make_record(), Gate()
    with serve(live_page) as server:
        server.reply = lambda body: Reply([start_chunk(record), *step_chunks(record)[:5], gate])
        page = pages.show(server.url, *flags)
        page.fill('[data-role="question"]', "?")
        page.click('[data-role="send"]')
        wait_until(page, "unmaskPlayer.state().numSteps === 5")  # seen with less motion, too
        outcome = act(
            page,
            """return { moves: [getComputedStyle(find(".tok[data-index]")).transitionDuration,
                                getComputedStyle(find(".done"), "::before").animationName] };""",
        )
        gate.open()
    assert json.dumps(outcome["moves"]) == json.dumps(moves)


def test_a_bar_of_the_histogram_is_a_step(pages, make_record):
    record = make_record()
    page = pages.show(render_player([record], "Traces"), CALM)
    box = page.locator(".histogram svg").bounding_box()
    num_bars = 40  # of which a short trace has fewer
    for step in (1, 7, max(record.trace.step_map) + 1, 40):
        page.mouse.click(box["x"] + (step - 0.5) * box["width"] / num_bars, box["y"] + box["height"] / 2)
        expected = min(step, max(record.trace.step_map) + 1)
        assert page.evaluate("unmaskPlayer.state().step") == expected
        num = record.trace.step_map.count(expected - 1)
        assert page.text_content('[data-role="bar-note"]') == f"step {expected}: {num} token{'s' if num != 1 else ''}"
    page.mouse.move(box["x"] + 10.5 * box["width"] / num_bars, box["y"] + 10)
    page.mouse.down()
    page.mouse.move(box["x"] + 2.5 * box["width"] / num_bars, box["y"] + 10)
    page.mouse.up()
    page.mouse.move(box["x"] + 5.5 * box["width"] / num_bars, box["y"] + 10)
    assert page.evaluate("unmaskPlayer.state().step") == 3


def test_a_long_histogram_is_summed_up(pages, make_record):
    record = make_record(pieces=["x"] * 101, per_step=1, num_response=101)
    record.trace.step_map = [min(step, 99) for step in record.trace.step_map]
    page = pages.show(render_player([record], "Traces"), CALM)
    label = page.get_attribute(".histogram svg", "aria-label")
    assert label == "Tokens unmasked by each of 100 steps: from 1 to 2, 1.01 on average"

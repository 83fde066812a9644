"""The page of a server when things go wrong: questions that cannot be sent, refusals, broken streams, Stop."""

from __future__ import annotations

import pytest

from tests.viewer.asking import CUT_OFF, STATE, ask, wait_for_end, wait_for_steps
from tests.viewer.conftest import CALM
from tests.viewer.fake_server import DONE, Gate, Reply, answer, chunk, refuse, start_chunk, step_chunks


def test_what_cannot_be_sent_is_not(live, server):
    ask(live, " ")
    live.get_by_label("Your question").fill("?")
    live.locator("summary").click()
    live.get_by_label("Temperature").fill("-1")
    live.locator("summary").click()  # folded again: the field that is wrong comes to sight
    live.get_by_role("button", name="Ask").click()
    assert live.evaluate("[document.querySelector('details').open, document.activeElement.name]") == [True, "temperature"]
    assert server.requests == []


def test_one_of_two_fails(live, server, make_record, tmp_path):
    replies = [answer(make_record()), refuse(503, "no room")]
    server.reply = lambda body: replies[body["unmask"]["remasking_strategy"] == "low_confidence_dynamic"]
    live.get_by_label("Compare: static beside dynamic").check()
    ask(live)
    wait_for_end(live, problem=True)
    assert live.text_content('[data-role="problem"]') == "dynamic: no room"
    assert live.text_content('[data-role="status"]').startswith("static: 23 tokens")
    assert live.evaluate("Array.from(document.querySelectorAll('.done'), (node) => node.textContent)") == [
        "done in 13 steps", "broken off after 0 steps",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refuse(400, "max_tokens is too large"), "max_tokens is too large"),
        (refuse(429, "The queue is full.", Retry_After="3"), "The queue is full. Try again in 3 s."),
        (Reply(status=502, body=b"<h1>"), "The server answered with status 502 (Bad Gateway)."),
        (Reply([]), CUT_OFF),
        (Reply([chunk(content="9")]), CUT_OFF),
        (Reply([chunk(content="9")], headers={"Content-Length": "9999"}), CUT_OFF),
        (Reply([chunk(content="9"), DONE]), "The server sent no trace of the answer."),
        (Reply(["data: {nope}\n\n"]), "The server sent something that cannot be read."),
        (Reply([{"error": {"message": "out of memory"}}]), "out of memory"),
    ],
)  # fmt: skip
def test_a_question_without_an_answer(live, server, reply, message):
    server.reply = lambda body: reply
    ask(live)
    wait_for_end(live, problem=True)
    assert live.text_content('[data-role="problem"]') == message
    state = live.evaluate(STATE)
    assert (state["record"], state["numRecords"]) == (-1, 0)
    assert live.input_value('[data-role="question"]') == "9+4+7-2=?"  # to try again


def test_a_wrong_key_leads_to_its_field(live, server):
    server.reply = lambda body: refuse(401, "wrong API key")
    ask(live)
    wait_for_end(live, problem=True)
    assert live.evaluate("document.activeElement.dataset.role") == "key"


def test_a_key_that_no_header_can_hold(live, server):
    live.locator("summary").click()
    live.get_by_label("API key").fill("schlüssel→")
    ask(live)
    wait_for_end(live, problem=True)
    assert live.text_content('[data-role="problem"]') == "The API key has characters that cannot be sent."
    assert server.requests == []


def test_without_a_server(pages, server):
    page = pages.show(server.page, CALM)
    ask(page)
    wait_for_end(page, problem=True)
    assert page.text_content('[data-role="problem"]') == "The server cannot be reached."


@pytest.mark.parametrize(
    ("last", "message"),
    [({"error": {"message": "out of memory"}}, "out of memory"), (0.0, CUT_OFF)],
)
def test_half_an_answer_can_be_looked_at(live, server, make_record, last, message):
    record = make_record()
    server.reply = lambda body: Reply([start_chunk(record), *step_chunks(record)[:4], last])
    ask(live)
    wait_for_end(live, problem=True)
    assert live.text_content('[data-role="problem"]') == message
    state = live.evaluate(STATE)
    assert (state["numSteps"], state["panels"][0]["isDone"]) == (4, True)
    assert live.text_content(".done") == "broken off after 4 steps"
    live.keyboard.press("Tab")
    assert live.is_hidden('[data-role="download"]')  # there is no trace


def test_stop_and_ask_again(live, server, make_record):
    record, gate = make_record(), Gate()
    server.reply = lambda body: Reply([start_chunk(record), *step_chunks(record)[:4], gate, *[": wait\n\n", 0.05] * 100])
    ask(live, "first")
    wait_for_steps(live, 4)
    live.get_by_role("button", name="Stop").focus()
    live.keyboard.press("Enter")
    wait_for_end(live)
    gate.open()
    assert live.text_content('[data-role="status"]') == "Stopped."
    assert live.text_content(".done") == "stopped after 4 steps"
    assert live.evaluate("document.activeElement.dataset.role") == "question"
    server.reply = lambda body: answer(record)
    ask(live, "second")
    wait_for_end(live)
    assert live.evaluate("Array.from(document.querySelectorAll('[data-role=record] option'), (o) => o.textContent)") == [
        "1. first (dynamic)", "2. second (dynamic)",
    ]  # fmt: skip
    live.locator('[data-role="record"]').select_option(index=0)
    first = live.evaluate(STATE)
    assert (first["record"], first["step"], first["numSteps"]) == (0, 0, 4)
    assert server.num_hung_up == 1


def test_text_of_a_stream_is_never_markup(live, server, make_record):
    bad = "</script><img src=x onerror=alert(1)>"
    record = make_record(pieces=[bad] * 5, prompt_pieces=[bad] * 11, response_text=bad)
    server.reply = lambda body: answer(record)
    ask(live, bad)
    wait_for_end(live)
    assert live.evaluate("document.images.length") == 0
    server.reply = lambda body: refuse(400, bad)
    ask(live, bad)
    wait_for_end(live, problem=True)
    assert live.text_content('[data-role="problem"]') == bad
    assert live.evaluate("document.images.length") == 0

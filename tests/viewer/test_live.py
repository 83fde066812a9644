"""The page of a server, against a scripted one: what is sent, and what is seen while an answer arrives and after it."""

from __future__ import annotations

import json

from tests.viewer.asking import STATE, ask, wait_for_end, wait_for_steps
from tests.viewer.conftest import act, wait_until
from tests.viewer.fake_server import Gate, Reply, answer, chunk, end_chunks, start_chunk, step_chunks
from unmask.viewer import load_records


def test_an_answer_is_seen_while_it_is_unmasked_and_can_be_replayed(live, server, make_record, tmp_path):
    record, gate = make_record(), Gate()
    steps = step_chunks(record)
    server.reply = lambda body: Reply([start_chunk(record), *steps[:5], gate, *steps[5:], *end_chunks(record)])
    assert act(live, "return { state: unmaskPlayer.state() };")["state"]["record"] == -1
    ask(live)
    half = wait_for_steps(live, 5)
    (panel,) = half["panels"]
    unmasked = [i for i, step in enumerate(record.trace.step_map) if step < 5]
    assert (half["step"], panel["isLive"], panel["isDone"], panel["numUnmasked"]) == (5, True, False, len(unmasked))
    assert panel["fresh"] == [i for i, step in enumerate(record.trace.step_map) if step == 4]
    assert panel["tokensPerForward"] == len(unmasked) / 5
    assert panel["text"] == "".join(record.canvas_pieces[i] for i in unmasked)
    seen = act(
        live,
        """
        const outcome = {
          tokens: findAll("[data-index]").length, masked: findAll(".tok.masked[data-index]").length,
          heads: find(".block").textContent.startsWith("=?⏎"),
          bars: find(".histogram svg").getAttribute("aria-label"), done: find(".done").textContent,
          stats: texts(".stats dd"), focus: document.activeElement.dataset.role, send: find('[data-role="send"]').disabled };
        unmaskPlayer.goTo(2); // whoever looks back stays there
        return outcome;
        """,
    )
    counts = [record.trace.step_map.count(step) for step in range(5)]
    assert seen["bars"] == "Tokens unmasked by each step, from the first: " + ", ".join(map(str, counts))
    stop = next(end for end in range(1, 25, 4) if end > max(unmasked))  # the block of the last one, and none after it
    assert (seen["tokens"], seen["masked"]) == (stop, stop - len(unmasked))
    assert seen["stats"] == ["5 of 5", str(len(unmasked)), f"{len(unmasked) / 5:.2f}"]
    assert (seen["heads"], seen["done"], seen["focus"], seen["send"]) == (True, "unmasking", "question", True)
    gate.open()
    wait_for_end(live)
    end = live.evaluate(STATE)
    assert (end["step"], end["numSteps"], end["panels"][0]["isLive"]) == (2, len(steps), False)
    rate = f"{record.trace.tokens_per_forward:.2f}"
    said = f"{record.trace.num_response_tokens} tokens in {record.trace.num_forwards} forwards, {rate} per forward, seed 0"
    assert live.text_content('[data-role="status"]') == said
    played = act(
        live,
        """
        const outcome = { path: [] };
        const note = () => outcome.path.push(unmaskPlayer.state().step);
        press("Home"); note(); press("ArrowRight"); note(); find('[data-role="forward"]').click(); note(); press("End"); note();
        outcome.text = unmaskPlayer.state().panels[0].text;
        outcome.after = texts(".tok.after[data-index]");
        outcome.tip = find('[data-index="1"]').getAttribute("aria-label");
        return outcome;
        """,
    )
    assert played["path"] == [0, 1, 2, len(steps)]
    assert played["text"] == record.response_text
    assert played["after"] == ["<|pad|>", "<|pad|>"]
    assert played["tip"].endswith(f"unmasked in step 3 of {len(steps)}, confidence 0.498, log-prob −0.696, token id 1")

    with live.expect_download() as download:
        live.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "traces.jsonl")
    (loaded,) = load_records(tmp_path / "traces.jsonl")
    assert loaded.trace == record.trace
    assert (loaded.prompt_text, loaded.response_text, loaded.id) == ("9+4+7-2=?", record.response_text, "question 1")
    assert (loaded.prompt_pieces, loaded.canvas_pieces) == (record.prompt_pieces, record.canvas_pieces)


def test_what_is_sent(live, server, make_record):
    server.reply = lambda body: answer(make_record())
    ask(live, "  two\nlines ")
    wait_for_end(live)
    headers, body = server.requests[0]
    assert "Authorization" not in headers
    assert body == {
        "messages": [{"role": "user", "content": "two\nlines"}], "stream": True, "stream_options": {"include_usage": True},
        "temperature": 1, "max_tokens": 64,
        "unmask": {
            "stream_unmask": True, "return_trace": True, "remasking_strategy": "low_confidence_dynamic",
            "confidence_threshold": 0.9, "block_size": 4,
        },
    }  # fmt: skip

    live.get_by_text("Settings").click()
    for label, text in (("Temperature", "0"), ("Most tokens", ""), ("Seed", "7"), ("Steps per block", "2"), ("Block size", "")):
        live.get_by_label(label).fill(text)
    live.get_by_label("Remasking strategy").select_option("sequential")
    live.get_by_label("System prompt").fill("Be brief.")
    live.get_by_label("API key").fill("secret")
    assert live.get_by_label("Confidence threshold").is_disabled()
    ask(live)
    wait_for_end(live)
    headers, body = server.requests[1]
    assert headers["Authorization"] == "Bearer secret"
    assert body["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "9+4+7-2=?"}]
    assert {name: body.get(name) for name in ("temperature", "max_tokens", "seed")} == {
        "temperature": 0, "max_tokens": None, "seed": 7,
    }  # fmt: skip
    assert body["unmask"] == {
        "stream_unmask": True, "return_trace": True, "remasking_strategy": "sequential", "denoising_steps_per_block": 2,
    }  # fmt: skip
    assert live.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]


def test_with_full_attention_the_whole_canvas_is_there_from_the_start(live, server, make_record):
    record, gate = make_record(), Gate()
    record.trace.step_map = [8 * (i // 8) + 7 - i % 8 for i in range(25)]  # windows of 8, each from right to left
    record.trace.step_map[24] = 24
    record.trace.block_size = 8
    steps = step_chunks(record)
    server.reply = lambda body: Reply(
        [start_chunk(record, is_block_causal=False), *steps[:2], gate, *steps[2:], *end_chunks(record)]
    )
    ask(live)
    wait_for_steps(live, 2)
    blocks = 'return { blocks: findAll(".block").map((block) => block.querySelectorAll("[data-index]").length) };'
    assert act(live, blocks)["blocks"] == [8, 8, 8, 1]
    assert live.evaluate("document.querySelectorAll('.tok.masked[data-index]').length") == 23
    gate.open()
    wait_for_end(live)
    assert act(live, blocks)["blocks"] == [8, 8, 8, 1]


def test_static_beside_dynamic_on_one_clock(live, server, make_record):
    slow, fast, gate = make_record(per_step=1), make_record(per_step=2), Gate()
    steps = step_chunks(slow)
    replies = {
        "low_confidence_static": Reply([start_chunk(slow), *steps[:3], gate, *steps[3:], *end_chunks(slow)]),
        "low_confidence_dynamic": answer(fast),
    }
    server.reply = lambda body: replies[body["unmask"]["remasking_strategy"]]
    live.get_by_label("Compare: static beside dynamic").check()
    assert live.get_by_label("Remasking strategy").is_disabled()
    ask(live)
    num_fast = max(fast.trace.step_map) + 1
    wait_until(live, f"{STATE}.numSteps === {num_fast} && !{STATE}.panels[1].isLive")
    half = live.evaluate(STATE)
    assert [(p["label"], p["numSteps"], p["isLive"], p["isDone"]) for p in half["panels"]] == [
        ("static", 3, True, False), ("dynamic", num_fast, False, True),
    ]  # fmt: skip
    gate.open()
    wait_for_end(live)
    end = live.evaluate(STATE)
    assert end["step"] == end["numSteps"] == len(steps)
    assert [panel["text"] for panel in end["panels"]] == [slow.response_text, fast.response_text]
    assert live.text_content('[data-role="status"]').startswith("static: 23 tokens in 25 forwards, 0.92 per forward, seed 0 · ")
    sent = [body["unmask"] for _, body in server.requests]
    assert [body["confidence_threshold"] for body in sent] == [0.9, 0.9]


def test_compared_answers_are_downloaded_in_their_order(live, server, make_record, tmp_path):
    gate = Gate()
    slow = Reply([gate, *answer(make_record(per_step=1)).script])
    server.reply = lambda body: (
        slow if body["unmask"]["remasking_strategy"] == "low_confidence_static" else answer(make_record())
    )
    live.get_by_label("Compare: static beside dynamic").check()
    ask(live)
    wait_until(live, f"{STATE}.panels.length === 2 && {STATE}.panels[1].isDone")
    gate.open()
    wait_for_end(live)
    with live.expect_download() as download:
        live.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "t.jsonl")
    assert [(record.id, record.member, record.trace.num_forwards) for record in load_records(tmp_path / "t.jsonl")] == [
        ("question 1", 0, 25), ("question 1", 1, 13),
    ]  # fmt: skip


def test_an_answer_goes_on_while_another_one_is_looked_at(live, server, make_record):
    record, gates = make_record(), [Gate(), Gate()]
    steps = step_chunks(record)
    server.reply = lambda body: answer(record)
    ask(live, "first")
    wait_for_end(live)
    script = [start_chunk(record), *steps[:3], gates[0], *steps[3:6], gates[1], *steps[6:], *end_chunks(record)]
    server.reply = lambda body: Reply(script)
    ask(live, "second")
    wait_for_steps(live, 3)
    live.locator('[data-role="record"]').select_option(index=0)
    gates[0].open()
    live.wait_for_timeout(200)
    first = live.evaluate(STATE)
    assert (first["record"], first["step"], first["panels"][0]["isLive"]) == (0, 0, False)
    live.locator('[data-role="record"]').select_option(index=1)
    assert wait_for_steps(live, 6)["step"] == 6  # where it is now
    gates[1].open()
    wait_for_end(live)
    end = live.evaluate(STATE)
    assert end["step"] == end["numSteps"] == len(steps)


def test_what_a_preempted_sequence_had_unmasked_is_masked_again(live, server, make_record):
    record, gates = make_record(), [Gate(), Gate()]
    steps = step_chunks(record)
    wrong = chunk({"step": 3, "tokens": [{"position": 6, "token": "\n?", "token_id": 99, "confidence": 0.1, "logprob": -1}]})
    script = [start_chunk(record), *steps[:3], wrong, chunk({"step": 4, "tokens": []}), gates[0], steps[2], gates[1]]
    server.reply = lambda body: Reply([*script, *steps[3:], *end_chunks(record)])
    ask(live)
    shown = """
        const breaks = findAll(".canvas br").length;
        return { at6: find('[data-index="6"]').className, breaks, state: unmaskPlayer.state() };
    """
    wait_for_steps(live, 5)
    before = act(live, shown)
    assert (before["at6"], before["breaks"]) == ("tok c0", 2)  # one of the prompt, one of the token
    gates[0].open()
    wait_for_steps(live, 3)
    between = act(live, shown)
    assert (between["at6"], between["breaks"]) == ("tok masked", 1)
    assert between["state"]["panels"][0]["text"] == "".join(
        piece for piece, step in zip(record.canvas_pieces, record.trace.step_map, strict=True) if step < 3
    )
    gates[1].open()
    wait_for_end(live)
    assert live.evaluate(STATE)["panels"][0]["text"] == record.response_text


def test_screen_readers_are_not_flooded(live, server, make_record):
    record = make_record(per_step=1)
    script = [start_chunk(record), *[part for step in step_chunks(record) for part in (step, 0.06)], *end_chunks(record)]
    server.reply = lambda body: Reply(script)
    live.evaluate("""() => {
      window.said = [];
      const watch = (node) => new MutationObserver(() => said.push(node.textContent)).observe(node, { childList: true });
      document.querySelectorAll('[aria-live], [role="status"], [role="alert"]').forEach(watch);
    }""")
    ask(live)
    wait_for_end(live)
    said = [text for text in live.evaluate("said") if text]
    assert said[0] == "Unmasking …"
    assert said[-1].startswith("23 tokens in 25 forwards")
    assert len(said) <= 3


def test_files_beside_answers(live, server, make_record, tmp_path):
    server.reply = lambda body: answer(make_record())
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps(make_record("x", prompt_text="1+1=?").to_dict()) + "\n")
    live.set_input_files("input[type=file]", path)
    wait_until(live, f"{STATE}.numRecords === 1")
    ask(live)
    wait_for_end(live)
    groups = live.evaluate("Array.from(document.querySelectorAll('optgroup'), (g) => [g.label, g.textContent])")
    assert groups == [["old.jsonl", "✓  1+1=?"], ["This session", "1. 9+4+7-2=? (dynamic)"]]
    assert live.evaluate(STATE)["record"] == 1

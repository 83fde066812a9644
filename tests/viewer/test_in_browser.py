"""The pages as a reader meets them, in a headless Chromium (skipped where there is none)."""

from __future__ import annotations

import pytest

from tests.viewer.conftest import CALM
from unmask.viewer import Chart, Comparison, Detail, KeyFigure, Report, Series, Table, render_live, render_player, render_report

DOM_TEXT = """
const domText = (panel) => Array.from(document.querySelectorAll(".panel")[panel].querySelectorAll("[data-index]"))
  .filter((token) => !token.classList.contains("masked") && !token.classList.contains("after"))
  .map((token) => token.textContent).join("");
"""


@pytest.fixture
def pair(make_record):
    return make_record(per_step=1, reward=0.0), make_record(per_step=2)


@pytest.fixture
def report(make_record, pair) -> str:
    series = [Series("static", list(range(20)), [i / 20 for i in range(20)]), Series("dynamic", [0, 19], [0.1, 0.9])]
    return render_report(
        Report(
            "A report with a title that is long enough to need a second line on a phone",
            ["Headline.", "Words."],
            [KeyFigure("Accuracy", "96 %", "31 % before")],
            [Table("Before and after", [f"column {i}" for i in range(8)], [["a long first cell", *["1.00"] * 7]])],
            [Chart("Accuracy", "step", "share", series), Chart("Speed", "step", "tokens per forward", series)],
            Comparison([pair[0]], [pair[1]], ("Before RL", "After RL")),
            [Detail("Recipe", "key = " + "x" * 300)],
        )
    )


def test_plays_by_itself_to_the_end_and_the_faster_one_ends_first(pages, pair):
    page = render_player([pair[0]], "Traces", [pair[1]], ("Before RL", "After RL"))
    outcome = pages.run(
        page,
        DOM_TEXT
        + """
        const ended = [];
        const speed = find('[data-role="speed"]');
        speed.value = "4"; speed.dispatchEvent(new Event("change"));
        while (!unmaskPlayer.state().isPlaying) await sleep(50);
        while (unmaskPlayer.state().isPlaying) {
          const panels = unmaskPlayer.state().panels;
          if (panels[1].isDone && !panels[0].isDone) ended.push(find(".panel:nth-child(2) .done").textContent);
          await sleep(50);
        }
        return { end: unmaskPlayer.state(), shown: [domText(0), domText(1)], ended: Array.from(new Set(ended)),
                 bars: findAll(".histogram svg").map((node) => [node.getAttribute("viewBox"), node.getAttribute("aria-label")]),
                 verdicts: texts(".panel .verdict") };
        """,
    )
    assert outcome["problems"] == []
    num_steps = [max(record.trace.step_map) + 1 for record in pair]
    end = outcome["end"]
    assert end["step"] == end["numSteps"] == num_steps[0]
    assert [panel["numSteps"] for panel in end["panels"]] == num_steps
    assert [panel["text"] for panel in end["panels"]] == [record.response_text for record in pair]
    assert outcome["shown"] == [record.response_text for record in pair]
    assert [panel["tokensPerForward"] for panel in end["panels"]] == [r.trace.tokens_per_forward for r in pair]
    assert outcome["ended"] == [f"done in {num_steps[1]} steps"]
    spoken = "Tokens unmasked by each step, from the first: "
    one, two = ([record.trace.step_map.count(step) for step in range(num)] for record, num in zip(pair, num_steps, strict=True))
    assert outcome["bars"] == [[f"0 0 40 {max(two)}", spoken + ", ".join(map(str, counts))] for counts in (one, two)]
    assert outcome["verdicts"] == ["✗ wrong", "✓ right"]


def test_steps_scrubs_selects_and_explains(pages, make_record):
    records = [make_record("q1"), make_record("q2", reward=0.0, prompt_text="1+1=?")]
    outcome = pages.run(
        render_player(records, "Traces"),
        DOM_TEXT
        + """
        const at = () => unmaskPlayer.state().step;
        const outcome = { path: [] };
        const note = () => outcome.path.push(at());
        note();
        find('[data-role="forward"]').click(); note();
        outcome.first = { state: unmaskPlayer.state().panels[0], text: domText(0) };
        press("ArrowRight"); note();
        press("ArrowRight"); note();
        press("ArrowLeft"); note();
        find('[data-role="back"]').click(); note();
        const scrub = find('[data-role="scrub"]');
        scrub.value = 5; scrub.dispatchEvent(new Event("input")); note();
        outcome.counter = find('[data-role="counter"]').textContent;
        outcome.spoken = scrub.getAttribute("aria-valuetext");
        outcome.fresh = findAll(".tok.fresh[data-index]").map((token) => Number(token.dataset.index));
        outcome.freshState = unmaskPlayer.state().panels[0].fresh;
        outcome.masked = texts(".tok.masked[data-index]").join("").trim();
        press("End"); note();
        press("ArrowRight"); note();
        press("Home"); note();
        unmaskPlayer.goTo(4.4); note();
        unmaskPlayer.goTo(1e9); note();
        press(" "); outcome.restarted = [at(), unmaskPlayer.state().isPlaying];
        press(" "); outcome.paused = unmaskPlayer.state().isPlaying;
        unmaskPlayer.goTo(99);
        const token = find('.tok[data-index="1"]');
        token.focus();
        outcome.tip = texts(".tip > div");
        outcome.label = token.getAttribute("aria-label");
        press("ArrowRight", token);
        outcome.walked = [at(), document.activeElement.dataset.index];
        outcome.colours = [token.className];
        find('input[value="step"]').click();
        outcome.colours.push(token.className);
        outcome.blocks = findAll(".block").map(
          (block) => [Number(block.dataset.block), block.querySelectorAll(".tok").length]);
        outcome.heads = find(".block").textContent;
        outcome.dimmed = texts(".tok.after[data-index]");
        outcome.options = texts('[data-role="record"] option');
        outcome.live = new Set();
        for (let i = 0; i < 40; i++) { await sleep(100); outcome.live.add(find('[data-role="live"]').textContent); }
        outcome.live = Array.from(outcome.live).filter(Boolean);
        outcome.plain = find('[data-role="plain"]').textContent;
        const select = find('[data-role="record"]');
        select.value = "1"; select.dispatchEvent(new Event("change"));
        outcome.second = unmaskPlayer.state();
        return outcome;
        """,
        CALM,
    )
    trace = records[0].trace
    num_steps = max(trace.step_map) + 1
    assert outcome["problems"] == []
    assert outcome["path"] == [0, 1, 2, 3, 2, 1, 5, num_steps, num_steps, 0, 4, num_steps]
    assert outcome["first"]["text"] == outcome["first"]["state"]["text"] == "9"
    assert outcome["first"]["state"]["fresh"] == [0]
    assert outcome["counter"] == outcome["spoken"] == f"step 5 of {num_steps}"
    assert outcome["fresh"] == outcome["freshState"] == [i for i, step in enumerate(trace.step_map) if step == 4]
    assert outcome["masked"] == ""
    assert outcome["restarted"] == [0, True]
    assert outcome["paused"] is False
    assert outcome["tip"] == [
        "+", "canvas position 1 (12 in the sequence)", "block 3", f"unmasked in step 3 of {num_steps}",
        "confidence 0.498", "log-prob −0.696", "token id 1",
    ]  # fmt: skip
    assert outcome["label"] == ", ".join(outcome["tip"])
    assert outcome["walked"] == [num_steps, "2"]
    assert outcome["colours"] == ["tok c0", "tok s0"]
    assert outcome["blocks"] == [[2, 4], [3, 4], [4, 4], [5, 4], [6, 4], [7, 4], [8, 4]]
    assert outcome["heads"] == "=?⏎9"
    assert outcome["dimmed"] == ["<|pad|>", "<|pad|>"]
    assert outcome["options"] == ["✓  9+4+7-2=?", "✗  1+1=?"]
    assert outcome["live"] == [f"step {num_steps} of {num_steps}, 23 of 23 tokens unmasked"]
    assert outcome["plain"] == f"Answer so far: {records[0].response_text}"
    assert (outcome["second"]["record"], outcome["second"]["step"]) == (1, 0)


def test_line_breaks_are_seen_and_made(pages, make_record):
    record = make_record(pieces=["a", ".\n\n", "\tb", "\u0000"])
    record.trace.step_map[3] = -1
    outcome = pages.run(
        render_player([record], "Traces"),
        DOM_TEXT
        + """
        unmaskPlayer.goTo(99);
        return { text: domText(0), breaks: find(".canvas").querySelectorAll('[data-index="1"] + br + br').length,
                 never: find('[data-index="3"]').getAttribute("aria-label"),
                 state: unmaskPlayer.state().panels[0].text };
        """,
        CALM,
    )
    assert outcome["problems"] == []
    assert outcome["text"] == "a.⏎⏎⇥b"
    assert outcome["state"] == "a.\n\n\tb"
    assert outcome["breaks"] == 1
    assert outcome["never"] == "masked, canvas position 3 (14 in the sequence), block 3, never unmasked"


def test_stands_still_for_readers_who_want_less_motion(pages, pair):
    outcome = pages.run(
        render_player([pair[0]], "Traces"),
        """
        await sleep(1500);
        return { state: unmaskPlayer.state(), moves: getComputedStyle(find('.tok')).transitionDuration };
        """,
        CALM,
    )
    assert outcome["problems"] == []
    assert outcome["state"]["step"] == 0
    assert outcome["moves"] == "0s"


def test_text_is_never_markup(pages, make_record):
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028"
    record = make_record(bad, pieces=[bad, "\u2028"], prompt_text=bad, prompt_pieces=[bad] * 11, answer=bad)
    page = render_report(
        Report(bad, [bad], [KeyFigure(bad, bad, bad)], [Table(bad, [bad], [[bad]])],
               [Chart(bad, bad, bad, [Series(bad, [0, 1], [0, 1])])],
               Comparison([record], [record], (bad, bad)), [Detail(bad, bad)])
    )  # fmt: skip
    outcome = pages.run(
        page,
        """unmaskPlayer.goTo(99); find('[data-index="0"]').focus(); await sleep(500);
        return { text: unmaskPlayer.state().panels[0].text, images: document.images.length,
                 pieces: find('[data-index="0"]').textContent, title: document.title };""",
        CALM,
    )
    assert outcome["problems"] == []
    assert outcome["images"] == 0
    assert outcome["text"] == bad + "\u2028"
    assert outcome["pieces"] == bad
    assert outcome["title"].startswith("</script>")


def test_report_works_under_its_own_policy(pages, report):
    document, messages = pages.open(report, CALM, budget_ms=300)
    assert messages == []
    assert document.count('class="panel"') == 3  # two, and the template
    assert 'data-index="0"' in document


def test_report_plays_and_its_charts_can_be_read_with_keys(pages, report, pair):
    outcome = pages.run(
        report,
        """
        const svg = find(".chart > svg");
        const read = () => [...texts(".chart:first-child .chart-at"), ...texts(".chart:first-child .chart-value")];
        const outcome = { values: [read()] };
        svg.focus(); press("ArrowLeft", svg); outcome.values.push(read());
        press("Home", svg); outcome.values.push(read());
        svg.blur(); outcome.values.push(read());
        press("ArrowRight", document.body); outcome.outside = unmaskPlayer.state().step;
        press("ArrowRight", find(".player .play")); outcome.inside = unmaskPlayer.state().step;
        find('[data-role="speed"]').value = "4"; find('[data-role="speed"]').dispatchEvent(new Event("change"));
        unmaskPlayer.play();
        while (unmaskPlayer.state().isPlaying) await sleep(100);
        return { ...outcome, end: unmaskPlayer.state() };
        """,
        CALM,
    )
    assert outcome["problems"] == []
    assert outcome["values"] == [["19", "0.95", "0.9"], ["18", "0.9", "–"], ["0", "0", "0.1"], ["19", "0.95", "0.9"]]
    assert (outcome["outside"], outcome["inside"]) == (0, 1)
    assert [panel["text"] for panel in outcome["end"]["panels"]] == [record.response_text for record in pair]


@pytest.mark.parametrize("width", [360, 768])
def test_pages_never_scroll_sideways(pages, make_record, pair, report, width):
    wide = make_record("q1", pieces=["x" * 200, " word", "y" * 90, "z"], prompt_text="q" * 300)
    live = render_live("T" * 80, model_name="m" * 90, attention="block_causal", block_size=4, defaults={})
    for page in (report, render_player([pair[0]], "T" * 80, [pair[1]]), render_player([wide], "Wide"), live):
        outcome = pages.run(
            page,
            """
            findAll("details").forEach((details) => { details.open = true; });
            unmaskPlayer.goTo(99);
            const { scrollWidth, clientWidth } = document.documentElement;
            return { overhang: scrollWidth - clientWidth };
            """,
            CALM,
            viewport={"width": width, "height": 700},
        )
        assert outcome == {"overhang": 0, "problems": []}

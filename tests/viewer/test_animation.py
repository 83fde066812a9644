"""The animation of `unmask view --gif`: what its frames show, how many they are, how large the file is."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import pytest
from PIL import Image, ImageColor

from unmask.errors import UnmaskError
from unmask.types import Trace, TraceRecord
from unmask.viewer import animation
from unmask.viewer.animation import MAX_FRAMES, draw_animation, drawable, has_glyph, make_frames
from unmask.viewer.palette import FRESH, ON_FRESH, page_colours

CONFIDENT = [f"c{rank}" for rank in range(5)]


def make_trace(num: int, block_size: int, per_step: int = 1, num_response: int | None = None) -> Trace:
    """Full attention: blocks one after the other, each in a random order."""
    rng, steps = random.Random(0), [0] * num
    step = 0
    for start in range(0, num, block_size):
        left = rng.sample(range(start, min(start + block_size, num)), min(block_size, num - start))
        while left:
            for i in left[:per_step]:
                steps[i] = step
            left, step = left[per_step:], step + 1
    confidences = [(0.3, 0.6, 0.8, 0.95, 0.999)[i % 5] for i in range(num)]
    return Trace(
        [1] * 8, list(range(num)), steps, [-0.1] * num, confidences, num if num_response is None else num_response, block_size,
        step, "stop",
    )  # fmt: skip


def make_long(num: int, **fields) -> TraceRecord:
    rng = random.Random(1)
    pieces = ["".join(rng.choice("abcdefgh ") for _ in range(rng.randint(1, 6))) for _ in range(num)]
    return TraceRecord("long", make_trace(num, 32, 2), prompt_text="Why? " * 60, canvas_pieces=pieces, **fields)


def colours_of(picture: Image.Image) -> set[str]:
    """Grounds of the page that there are stretches of, the legend left out (the edges of letters have all colours)."""
    names = {name: colour for name, colour in page_colours().items() if name in ("mask-a", "mask-b", *CONFIDENT)}
    names |= {f"fresh{rank}": colour for rank, colour in enumerate(FRESH)}
    pixels = picture.crop((0, 0, picture.width, picture.height - 45)).convert("RGB").tobytes()
    return {name for name, colour in names.items() if bytes(ImageColor.getrgb(colour)[:3]) * 6 in pixels}


def test_first_all_is_masked_and_last_all_is_there(make_record) -> None:
    record = make_record(per_step=1)
    frames, durations = make_frames([record])
    assert len(frames) == len(durations) == record.trace.num_forwards + 1
    assert len({frame.size for frame in frames}) == 1
    assert colours_of(frames[0]) == {"mask-a", "mask-b"}
    assert {name for name in colours_of(frames[1]) if name.startswith("fresh")}
    assert colours_of(frames[-1]) == {"c0", "c1", "c2", "c4"}  # exactly the page's; no mask, nothing new
    assert durations[-1] == max(durations) >= 2_000
    assert all(20 <= duration <= 1_000 for duration in durations[:-1])


def test_new_tokens_stand_out_for_one_step(make_record) -> None:
    frames, _ = make_frames([make_record(per_step=1)])
    for before, after in pairwise(frames[:-1]):
        assert any(name.startswith("fresh") for name in colours_of(after))
        assert before.tobytes() != after.tobytes()


@pytest.mark.parametrize(("num", "limit"), [(256, 10**6), (1000, 2 * 10**6)])
def test_size_and_number_of_frames_are_bounded(tmp_path, num, limit) -> None:
    path = tmp_path / "new" / "answer.gif"
    draw_animation([make_long(num)], path)
    assert path.stat().st_size < limit
    assert [file.name for file in path.parent.iterdir()] == ["answer.gif"]
    with Image.open(path) as picture:
        assert picture.info["loop"] == 0
        assert picture.n_frames <= MAX_FRAMES
        assert picture.width < 900
        assert picture.height < 900
        picture.seek(picture.n_frames - 1)
        assert picture.info["duration"] >= 2_000
        assert not any(name.startswith(("mask", "fresh")) for name in colours_of(picture))


def test_of_long_answers_the_newest_part_is_shown() -> None:
    frames, _ = make_frames([make_long(1000)])
    assert all(any(name.startswith("fresh") for name in colours_of(frame)) for frame in frames[1:-1])


def test_two_answers_side_by_side(make_record) -> None:
    fast, slow = make_record(per_step=4), make_record(per_step=1)
    alone, _ = make_frames([slow])
    both, _ = make_frames([fast, slow], ("fast", "slow"))
    assert len(both) == len(alone)
    middle = both[fast.trace.num_forwards]  # the fast one has ended: it waits, without masks
    left = middle.crop((0, 0, middle.width // 2, middle.height))
    right = middle.crop((middle.width // 2, 0, middle.width, middle.height))
    assert not any(name.startswith(("mask", "fresh")) for name in colours_of(left))
    assert any(name.startswith("mask") for name in colours_of(right))


@pytest.mark.parametrize(
    "change",
    [
        {"canvas_pieces": [], "prompt_pieces": [], "prompt_text": ""},  # a bare trace: ids stand for tokens
        {"pieces": ["\n"] * 12},
        {"pieces": ["日本語 ", "\u202e", "\x1b[31m", "🙂", "x" * 300, "", "\ud800", "e\u0301", "\t", "\x00"]},
        {"num_response": 0},
        {"prompt_text": "\n" + "word " * 500 + "日" * 200},
    ],
)
def test_odd_texts_are_drawn(make_record, change) -> None:
    frames, _ = make_frames([make_record(**change)])
    assert frames[-1].height < 900


def test_a_trace_without_tokens_or_never_finished_is_drawn() -> None:
    empty = Trace([], [], [], [], [], 0, 4, 0, "abort")
    frames, durations = make_frames([TraceRecord("x", empty)])
    assert len(frames) == len(durations) == 1
    trace = make_trace(8, 4)
    trace.step_map[4:], trace.num_forwards, trace.num_response_tokens = [-1] * 4, 4, 6
    frames, _ = make_frames([TraceRecord("x", trace)])
    assert {"mask-a"} <= colours_of(frames[-1])


def test_what_the_font_lacks_is_shown_as_such() -> None:
    if animation.monospace_font() is None:
        pytest.skip("matplotlib is not installed")
    assert all(has_glyph(c) for c in "aé█↵▯…λ∑ñЖ")
    assert drawable("a日b") == "a▯▯b"
    assert drawable("x\ny") == "x\ny"


def test_without_matplotlib_another_font_serves(make_record, monkeypatch) -> None:
    monkeypatch.setattr(animation, "monospace_font", lambda: None)
    caches = (animation._font, animation.has_glyph, animation.cell_width, animation._tile)
    for cached in caches:
        cached.cache_clear()
    frames, _ = make_frames([make_record()])
    assert colours_of(frames[-1]) == {"c0", "c1", "c2", "c4"}
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("name", ["answer.png", "answer", "answer.html"])
def test_other_formats_are_refused(make_record, tmp_path, name) -> None:
    with pytest.raises(UnmaskError, match=rf"{name}: an animation is a GIF; give it a name that ends in .gif"):
        draw_animation([make_record()], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_it_is_said_what_to_install(make_record, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UnmaskError, match=r"answer.gif: drawing needs pillow.*pip install 'unmask\[plot\]'"):
        draw_animation([make_record()], tmp_path / "answer.gif")
    assert list(tmp_path.iterdir()) == []


def test_new_tokens_are_readable() -> None:
    """Contrast of 4.5 at least, of all inks on all grounds (WCAG 2, AA)."""

    def luminance(colour: str) -> float:
        parts = [value / 255 for value in ImageColor.getrgb(colour)[:3]]
        red, green, blue = (v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    colours = page_colours()
    pairs = [(ON_FRESH, ground) for ground in FRESH] + [(colours["text"], colours[name]) for name in CONFIDENT]
    for ink, ground in [*pairs, (colours["muted"], colours["card"])]:
        dark, light = sorted((luminance(ink), luminance(ground)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)

"""`unmask generate --watch` in a terminal of its own, and the animations of `generate` and `view`."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import struct
import sys
import termios
import time
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests.cli.test_generation import decoded, lines
from tests.recipes import unmask
from tests.viewer.screen import Screen
from unmask.cli.main import main
from unmask.data.chained_arithmetic import ChainedArithmetic
from unmask.data.chat import ChatTokenizer
from unmask.models.checkpoint import new_model, save_model
from unmask.viewer.terminal import Watcher

fcntl = pytest.importorskip("fcntl")
pty = pytest.importorskip("pty")

NUM_COLUMNS, HEIGHT = 40, 12


class Terminal:
    """The command in a pseudo-terminal of 40 columns. `read` waits until something is there; `end` for its exit code."""

    def __init__(self, *words: object) -> None:
        self.written = ""
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, NUM_COLUMNS, 0, 0))
            unset = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
            env = {name: value for name, value in os.environ.items() if name not in unset}
            env |= {"TERM": "xterm-256color", "COLORTERM": "truecolor", "OMP_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, "-m", "unmask", *map(str, words)], env)

    def read(self, expected: str = "", timeout_s: float = 120.0) -> None:
        data, end = b"", time.monotonic() + timeout_s
        while not expected or expected not in self.written:
            assert time.monotonic() < end, f"waited for {expected!r} in vain: {self.written[-500:]}"
            if not select.select([self.descriptor], [], [], 1.0)[0]:
                continue
            with contextlib.suppress(OSError):  # what Linux says at the end
                data = os.read(self.descriptor, 65536)
            if not data:
                assert not expected, f"ended without {expected!r}: {self.written[-500:]}"
                return
            self.written, data = self.written + data.decode(errors="replace"), b""

    def end(self) -> int:
        self.read()
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    @property
    def screen(self) -> Screen:
        return Screen(NUM_COLUMNS).feed(self.written)


class DrawnIn(io.StringIO):
    """Takes the place of stdout, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def watch(monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[Screen, str]:
    """`unmask WORDS --watch` within this process: what stands on the screen, and all that was written."""
    for name, value in {"COLUMNS": NUM_COLUMNS, "LINES": HEIGHT, "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, str(value))
    file = DrawnIn()
    with redirect_stdout(file), pytest.raises(SystemExit) as end:
        main([*map(str, words), "--watch"])
    assert end.value.code == 0
    return Screen(NUM_COLUMNS).feed(file.getvalue()), file.getvalue()


def test_answers_are_drawn_one_after_the_other(trained, tmp_path, monkeypatch, capsys) -> None:
    """The same answers, decoded the same way, as without watching."""
    words = ["generate", trained / "rl", "--prompt", "1+2=?", "--prompt", "3+4=?", "-k", "2", "max_new_tokens=12"]
    monkeypatch.chdir(tmp_path)  # a long name of a file would be wider than the screen
    screen, written = watch(monkeypatch, *words, "--output", "watched.jsonl")
    assert "4 answers" in capsys.readouterr().err
    assert unmask(*words, "--output", tmp_path / "plain.jsonl").returncode == 0
    watched, plain = lines(tmp_path / "watched.jsonl"), lines(tmp_path / "plain.jsonl")
    assert [decoded(row) for row in watched] == [decoded(row) for row in plain]
    assert [line for line in screen.text.splitlines() if line.endswith("=?")] == [
        "[1/2] 1+2=?", "[2/2] 1+2=?", "[1/2] 3+4=?", "[2/2] 3+4=?",
    ]  # fmt: skip
    for row in watched:
        trace = row["trace"]
        answer = "".join(row["canvas_pieces"][: trace["num_response_tokens"]])
        assert answer.replace("\n", "↵") in screen.text.replace("\n", "")
        assert f"{trace['num_response_tokens']} tokens in {trace['num_forwards']} step" in screen.text
    assert "▒▒" in written
    assert "step 2" in written
    assert not screen.is_cursor_hidden


@pytest.mark.parametrize("family", ["sdar", "llada"])
@pytest.mark.parametrize("question", ["1+2=?", "1+2+3=?"])
def test_every_step_of_the_engine_is_drawn(family, question, tmp_path, monkeypatch) -> None:
    """Block models and full attention: what the steps showed, one after the other, is the trace."""
    folder = tmp_path / "model"
    tokenizer = ChatTokenizer.tiny(ChainedArithmetic.vocabulary)
    save_model(new_model(f"{family}/tiny", 0, **tokenizer.special_ids), folder)
    tokenizer.save(folder)
    shown: list[tuple] = []
    show = Watcher.show
    monkeypatch.setattr(Watcher, "show", lambda self, *news: (shown.append(news), show(self, *news))[1])
    words = ["--prompt", question, "max_new_tokens=11", "stop_token_ids=[]", "block_size=4", "--output", "t.jsonl"]
    monkeypatch.chdir(tmp_path)
    _, written = watch(monkeypatch, "generate", folder, *words)
    trace = lines(tmp_path / "t.jsonl")[0]["trace"]
    steps, ids = [-1] * len(trace["canvas_ids"]), [None] * len(trace["canvas_ids"])
    for step, positions, tokens, _ in shown:
        for position, token in zip(positions, tokens, strict=True):
            steps[position], ids[position] = step, token
    assert (steps, ids) == (trace["step_map"], trace["canvas_ids"])
    first = "".join(re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", written.partition("reading")[0]).split("\n"))
    num_before = (len(trace["prompt_ids"]) % 4) if family == "sdar" else 0
    assert first.count("▒▒") == (4 - num_before if family == "sdar" else 11)  # full attention sees its canvas from the start


@pytest.mark.slow
def test_interrupted_it_stops_at_once_and_leaves_the_terminal_in_order(trained) -> None:
    terminal = Terminal("generate", trained / "rl", "--prompt", "1+2=?", "--watch", "max_new_tokens=400", "stop_token_ids=[]")
    terminal.read("step 5")
    os.kill(terminal.pid, signal.SIGINT)
    assert terminal.end() == 130
    assert "Traceback" not in terminal.written
    assert "unmasked" in terminal.screen.text
    assert not terminal.screen.is_cursor_hidden


def test_without_a_terminal_it_is_an_error_before_anything_is_loaded(tmp_path) -> None:
    result = unmask("generate", tmp_path / "no-such-checkpoint", "--prompt", "1+2=?", "--watch")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: --watch draws in a terminal, which the output is not; leave --watch out, or write an animation with --gif\n"
    )


def test_animation_of_an_answer(trained, tmp_path) -> None:
    words = ["generate", trained / "rl", "--prompt", "1+2=?", "max_new_tokens=8"]
    result = unmask(*words, "--gif", tmp_path / "a.gif")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1  # the answer alone
    assert result.stderr.endswith(f"{tmp_path / 'a.gif'}\n")
    output = ["--output", tmp_path / "t.jsonl", "--gif", tmp_path / "b.gif"]
    assert unmask(*words, *output).stdout == f"{tmp_path / 't.jsonl'}\n{tmp_path / 'b.gif'}\n"
    again = unmask(*words, "--output", tmp_path / "t.jsonl", "--gif", tmp_path / "c.gif")  # nothing is decoded again
    assert "(1 were there already)" in again.stderr
    assert unmask("view", tmp_path / "t.jsonl", "--gif", tmp_path / "d.gif").stdout == f"{tmp_path / 'd.gif'}\n"
    images = [(tmp_path / f"{name}.gif").read_bytes() for name in "abcd"]
    assert images[0].startswith(b"GIF89a")
    assert len(set(images)) == 1


@pytest.fixture
def traces(trained, tmp_path) -> Path:
    path = tmp_path / "traces.jsonl"
    words = ["--prompt", "1+2=?", "--prompt", "3+4=?", "max_new_tokens=8"]
    assert unmask("generate", trained / "rl", *words, "--output", path).returncode == 0
    return path


def test_animations_of_records(traces, tmp_path) -> None:
    def draw(*words: object) -> bytes:
        result = unmask("view", traces, "--gif", tmp_path / "x.gif", *words)
        assert (result.returncode, result.stdout) == (0, f"{tmp_path / 'x.gif'}\n"), result.stderr
        assert not traces.with_suffix(".html").exists()
        return (tmp_path / "x.gif").read_bytes()

    first, second = draw(), draw("--record", "1")
    assert first == draw("--record", "0")
    assert first != second
    other = tmp_path / "other.jsonl"
    other.write_text(traces.read_text().splitlines()[1] + "\n")
    both = draw("--compare", other)  # the first that both have
    assert both not in (first, second)
    assert both == draw("--compare", other, "--record", "1")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gif", "x.png"], "x.png: an animation is a GIF; give it a name that ends in .gif"),
        (["--gif", "x.gif", "--record", "7"], "has no record '7'; it has '0', '1'"),
        (["--record", "0"], "--record is for --gif; a page has all records"),
        (["--gif", "x.gif", "--output", "x.html"], "--output is for a page; give either --output or --gif"),
    ],
)
def test_mistakes_of_view(traces, tmp_path, monkeypatch, words, message) -> None:
    monkeypatch.chdir(tmp_path)
    result = unmask("view", traces, *words)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["traces.jsonl"]


def test_records_to_compare_need_an_id_in_common(traces, tmp_path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(traces.read_text().splitlines()[0].replace('"id": "0"', '"id": "7"') + "\n")
    result = unmask("view", traces, "--compare", other, "--gif", tmp_path / "x.gif")
    assert (result.returncode, result.stdout) == (2, "")
    assert "the two files have no id in common (first ids: '0' and '7')" in result.stderr


def test_the_traces_are_not_overwritten(traces) -> None:
    named = traces.rename(traces.with_suffix(".gif"))
    before = named.read_text()
    result = unmask("view", named, "--gif", named)
    assert "is the file with the traces; write the animation somewhere else" in result.stderr
    assert named.read_text() == before


@pytest.mark.parametrize("words", [["--prompt", "1+2=?", "--prompt", "3+4=?"], ["--prompt", "1+2=?", "-k", "2"]])
def test_an_animation_is_of_one_answer(trained, tmp_path, words) -> None:
    result = unmask("generate", trained / "rl", *words, "--gif", tmp_path / "x.gif")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--gif draws one answer, and there are 2" in result.stderr
    assert not (tmp_path / "x.gif").exists()

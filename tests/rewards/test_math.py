"""Mathematical answers: verdicts, limits and attacks."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import unmask
from tests.rewards.responses import rollout, scored
from unmask.errors import UnmaskError
from unmask.rewards import math
from unmask.rewards.math import verify_math


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("18", "18"),
        ("so \\boxed{18}", "5 + 13 = 18\n#### 18"),
        ("#### $1,234.00", "1234"),
        ("\\boxed{10000}", "10{,}000"),
        ("\\boxed{32,\\! 349}", "32349"),
        ("\\boxed{1\\,000}", "1 000"),
        ("\\boxed{83}$.", "083"),  # AIME
        ("\\boxed{9 \\text{ points}}", "9"),
        ("\\boxed{\\$57.00}", "57"),
        ("\\boxed57.", "57"),
        ("\\boxed{18 dollars per day}", "$18$"),
        ("\\boxed{15\\mbox{ cm}^2}", "15"),
        ("\\boxed{5\\sqrt{2}\\text{ m}}", "5 \\sqrt{2}"),
        ("\\boxed{12cm}", "12 \\text{ cm}"),
        ("\\boxed{60 miles/hour}", "60"),
        ("\\boxed{0.5}", "$\\frac{1}{2}$"),
        ("\\boxed{\\frac12}", "0.5"),
        ("\\boxed{2 \\frac{1}{2}}", "5/2"),
        ("\\boxed{-0.333333333}", "-\\frac{1}{3}"),
        ("\\boxed{28\\%}", "28"),
        ("\\boxed{x = 5}", "5"),
        ("\\boxed{\\sqrt{50}}", "5\\sqrt{2}"),
        ("\\boxed{(x+1)^2}", "x^2 + 2x + 1"),
        ("\\boxed{\\dfrac{\\pi}{2}}", "\\frac{\\pi}{2}"),
        ("\\boxed{π/2}", "\\frac{\\pi}{2}"),
        ("\\boxed{5, 3}", "3,5"),
        ("\\boxed{3,5}", "[3, 5]"),
        ("\\boxed{x = 1 \\text{ or } x = -2}", "-2, 1"),
        ("\\boxed{[0,1) \\cup (2, \\infty)}", "$[0,1) \\cup (2,\\infty)$"),
        ("\\boxed{\\text{Evelyn}}", "Evelyn"),
        ("\\boxed{\\text{(C)}}", "C"),
        ("\\boxed{90^\\circ}", "90"),
        ("\\boxed{1.5 \\text{ million dollars}}", "1,500,000"),
        ("the answer is **42**.", "42"),
        ("\\boxed{10^{10^{10}}}", "10^{10^{10}}"),
        ("\\\\boxed{\\\\left( \\\\frac{4}{3}, 2 \\\\right)}", "(\\frac{4}{3}, 2)"),  # escaped twice
    ],
)
def test_right_answers(text, gold) -> None:
    assert verify_math(text, gold)[::2] == (True, "right")


@pytest.mark.parametrize(
    ("text", "gold"),
    [
        ("\\boxed{1, 2, 3}", "2"),
        ("\\boxed{2 \\text{ or } 3}", "2"),
        ("\\boxed{1}, \\boxed{2}", "2"),
        ("\\boxed{\\pm 2}", "2"),
        ("\\boxed{3} no, \\boxed{2}", "3"),
        ("\\boxed{32, 349}", "32349"),
        ("\\boxed{(3, 1)}", "(1, 3)"),
        ("\\boxed{[0, 1]}", "[0, 1)"),
        ("\\boxed{0.33}", "\\frac{1}{3}"),
        ("\\boxed{16386.17}", "16386.18"),
        ("\\boxed{0.0000001}", "0"),
        ("\\boxed{5 \\text{ million}}", "5"),
        ("\\boxed{5 pi}", "5"),
        ("\\boxed{2t}", "2"),
        ("\\boxed{2*(3+1) ]}", "2"),  # no formula, and its first number is no answer
        ("\\boxed{\\frac{333333333}{1000000000}}", "\\frac{1}{3}"),
        ("\\boxed{2xy}", "2"),
        ("\\boxed{2 xy}", "2"),
        ("\\boxed{5 \\text{ pi}}", "5"),
        ("\\boxed{1 - \\frac{1}{\\mathrm{e}}}", "1 + \\frac{1}{\\mathrm{e}}"),
        ("\\boxed{4}", "1 or 2 or 3 or 4"),
        ("\\boxed{x}", "7"),
        ("\\boxed{\\text{d}}", "\\text{E}"),
        ("\\boxed{\\frac{1}{0}}", "1"),
        ("\\boxed{\\frac{0}{0}}", "0"),
        ("\\boxed{x^2 + 1}", "x^2 - 1"),
        ("AZYUK2A", "2"),
        ("\\boxed{2, 3, 3}", "2, 3"),
        ("\\boxed{0.5\\%}", "0.5"),
        ("The answer is not 42", "42"),
        ("The answer is more than 42", "42"),
        ("The answer is 41 or 42", "42"),
        ("<think>\\boxed{42}</think> So it is \\boxed{41}, no \\boxed{43}", "42"),
    ],
)
def test_wrong_answers(text, gold) -> None:
    verdict = verify_math(text, gold)
    assert (verdict.correct, verdict.extracted is not None) == (False, True)
    assert verdict.reason.endswith(f" is not {gold}")


@pytest.mark.parametrize(
    "text", ["", " ", "\\boxed{}", "\\boxed{ }", "no idea what you ask for here", "\\boxed{$$}", "<think>\\boxed{42}</think>"]
)
def test_texts_without_an_answer(text) -> None:
    verdict = verify_math(text, "1")
    assert (verdict.correct, verdict.reason) == (False, "no answer found")


def test_the_caller_says_which_fallbacks() -> None:
    assert not verify_math("The answer is 3", "3", fallbacks=()).correct
    assert verify_math("The answer is 3. Or 4", "4", fallbacks=("last_number",)).extracted == "4"
    with pytest.raises(
        UnmaskError, match="unknown fallback 'guess'; known: hash, answer_is, whole, last_expression, last_number"
    ):
        verify_math("3", "3", fallbacks=("guess",))
    with pytest.raises(UnmaskError, match="gold is empty"):
        verify_math("3", " ")


ATTACKS = {
    "tower": "10^{10^{10}}",
    "higher tower": "9^{9^{9^{9}}}",
    "power of a power": "(2^{100000})^{100000}",
    "small tower": "10^{-10^{10}}",
    "factorial": "100000000!",
    "factorials": "((((10!)!)!)!)",
    "binomial": "\\binom{1000000}{500000}",
    "sum": "\\sum_{k=1}^{10000000} \\frac{1}{k}",
    "integral": "\\int_0^1 e^{e^{e^{x^x}}} dx",
    "expansion": "(a+b+c+d+e+f)^{40}",
    "roots": "\\sqrt{" * 50 + "1" + "}" * 50,
    "braces": "{" * 5000 + "1" + "}" * 5000,
    "brackets": "(" * 900 + "1" + ")" * 900,
    "digits": "9" * 10**6,
    "many digits": "9" * 1900,
    "float": "1.0 \\times 10^{999999999}",
    "python": "__import__('os').system('touch pwned')",
    "attributes": "().__class__.__bases__[0].__subclasses__()",
    "zero bytes": "\x00",
    "half a character": "\ud800",
    "infinity": "\\infty - \\infty",
    "not a number": "nan",
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_wrong_and_end_in_time(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    verify_math("1", "1")
    start = time.monotonic()
    verdict = verify_math(f"\\boxed{{{ATTACKS[name]}}}", "1", time_limit=0.5)
    assert time.monotonic() - start < 1.5
    assert not verdict.correct
    if name in ("tower", "higher tower", "small tower", "power of a power", "factorial", "float"):
        assert verdict.reason.endswith(" is not 1")  # seen without working it out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["x" * 10**6, "1" * 10**6, "{" * 10**6, "\\boxed{" * 10**5, "$" * 10**6, "\\(" * 5 * 10**5])
def test_long_texts_end_in_time(text) -> None:
    verify_math("1", "1")
    start = time.monotonic()
    assert not verify_math(text, "1", time_limit=2.0).correct
    assert time.monotonic() - start < 3.0


FIRST = """
import time
from unmask.rewards.math import verify_math
start = time.monotonic()
verdict = verify_math("(a+b+c+d+e+f)^{40}", "7", time_limit=6.0)  # a worker may take as long to start, on a busy machine
assert time.monotonic() - start < 12.0, time.monotonic() - start  # one that nothing ends takes hours
assert verdict.reason.startswith("took longer than"), verdict
"""


def test_the_first_answer_ends_in_time_too() -> None:
    """Though the worker starts with it."""
    result = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


WATCHED = """
import re
import sympy.parsing.sympy_parser as parser
from unmask.rewards.equality import make_judge

evaluate = parser.eval_expr

def watch(code, *arguments):
    if not re.fullmatch(r"Integer \\([0-9]+ \\)|Float \\('[0-9.]+' \\)", code):  # SymPy reads digits so
        raise SystemExit(f"evaluated {code}")
    return evaluate(code, *arguments)

judge = make_judge()
parser.eval_expr = watch
for text in (
    r"\\boxed{2+2}", "1/2 + 1/3", "(1+2)*3", "x**2", r"\\boxed{[1, 2]}", "3 + 4 = 7", "so 1+1", r"\\boxed{1.5x}",
    r"\\boxed{\\mathrm{exit()}}", r"\\boxed{\\text{exit()}}", r"\\boxed{x_{exit()}}", r"\\boxed{\\operatorname{exit}(5)}",
    r"\\boxed{exit(5)}", "__import__('os').abort()", r"\\boxed{5_{exit()}}", r"\\boxed{f(exit())}", r"\\boxed{5;exit()}",
):
    judge((text, "3/7 + 1", ("whole", "last_expression")))
    judge(("3/7 + 1", text, ("whole", "last_expression")))
"""


def test_no_text_is_evaluated_as_python() -> None:
    """SymPy's parser of strings does that; a reader of math-verify that we do not use calls it."""
    result = subprocess.run([sys.executable, "-c", WATCHED], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_reward() -> None:
    answers = [("\\boxed{7.0}", "stop"), ("\\boxed{8}", "stop"), ("7", "stop"), ("\\boxed{7}", "length")]
    scores = scored("math", *[rollout(text, reason) for text, reason in answers], wrong_reward=0.1)
    assert [score[:2] for score in scores] == [
        (1.0, "right"), (0.1, "8 is not 7"), (0.0, "no answer found"), (0.0, "cut at the length limit"),
    ]  # fmt: skip
    assert scored("math", rollout("The answer is 7."), fallbacks=["answer_is"]).reward == 1.0


def test_what_takes_too_long_scores_0_and_others_go_on() -> None:
    texts = [f"\\boxed{{{ATTACKS['factorials']}}}", "\\boxed{7}", f"\\boxed{{{ATTACKS['expansion']}}}", "\\boxed{7}"]
    scores = scored("math", *map(rollout, texts), time_limit=0.5, num_workers=1, wrong_reward=0.1)
    late = (0.0, "took longer than 0.5 s")
    assert [score[:2] for score in scores] == [late, (1.0, "right"), late, (1.0, "right")]


@pytest.mark.parametrize("package", ["math_verify", "latex2sympy2_extended", "antlr4"])
def test_without_a_parser_nothing_starts(package, tmp_path, monkeypatch) -> None:
    """Also where a package of the package is missing, which would show at the first formula only."""
    (tmp_path / f"{package}.py").write_text("raise ImportError('broken on purpose')")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(UnmaskError) as error:
        scored("math", rollout("\\boxed{7}"))
    assert str(error.value) == (
        "the reward math needs math-verify, which cannot be imported (broken on purpose): pip install 'unmask[math]'"
    )
    monkeypatch.setattr(math, "_verifiers", {})
    with pytest.raises(UnmaskError, match="cannot be imported"):
        verify_math("7", "7")


FORK = """
import os, unmask
unmask.verify_math("7", "7")
child = os.fork()
print(unmask.verify_math("7", "7").correct, flush=True)
if child:
    os.waitpid(child, 0)
"""


def test_forks_have_a_worker_of_their_own() -> None:
    result = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, check=False, timeout=60)
    assert (result.stdout, result.returncode) == ("True\nTrue\n", 0)


def test_it_is_public() -> None:
    assert unmask.verify_math("18", "18") == (True, "18", "right")

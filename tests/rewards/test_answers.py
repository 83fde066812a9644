"""Which part of a text is the answer."""

from __future__ import annotations

import time

import pytest

from unmask.rewards.answers import find_answer, last_boxed
from unmask.rewards.math import DEFAULT_RULES
from unmask.rewards.written_forms import are_equal_forms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{7}", "7"),
        (r"\boxed{1} no, \boxed{2}.", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{3} and \boxed{4", "3"),  # the last one with balanced braces
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),  # an escaped brace is no brace
        (r"\boxed {5}", "5"),
        (r"\fbox{5}", "5"),
        (r"\boxed{x = \boxed{3}}", "3"),
        (r"\boxed{}", ""),
        ("7", None),
        ("", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\boxed{1} and \boxed{2}", "1, 2"),
        (r"\boxed{1}, \boxed{2} \text{ or } \boxed{3}", "1, 2, 3"),
        (r"$\boxed{1}$ for part (a) and $\boxed{2}$", "1, 2"),
        (r"\boxed{5}$ $\boxed{5}", "5"),
        (r"\boxed{1} is wrong, so \boxed{2}", "2"),
        (r"\boxed{1}. \boxed{2}", "2"),
        ("\\boxed{1}\n\\boxed{2}", "2"),
        (r"\boxed{4} = \boxed{5}", "5"),
        (r"\boxed{x = \boxed{3}}", "3"),
    ],
)
def test_boxed_answers_that_are_one_list(text, expected) -> None:
    assert find_answer(text) == expected


@pytest.mark.parametrize(
    ("text", "rule", "expected"),
    [
        ("5 + 5 = 10\n#### 10", "hash", "10"),
        ("#### 10\n#### $1,200.00 dollars", "hash", "$1,200.00 dollars"),
        ("5 #### 10", "hash", None),
        ("The answer is 18.", "answer_is", "18"),
        ("The final answer is: $\\frac{1}{2}$. I hope it is correct.", "answer_is", "\\frac{1}{2}"),
        ("Answer: She has 5 apples.\nmore", "answer_is", "5"),
        ("Final Answer: The largest $n$ is 34.", "answer_is", "34"),
        ("**Final Answer**:\n\n**18**", "answer_is", "18"),
        ("2 + 3 = 5\nA: 18", "answer_is", "18"),
        ("The answer is\n\\[ 5 \\]", "answer_is", "5"),
        ("The answer is 18 because 3 + 15 is.", "answer_is", "18"),
        ("The answer is $\\boxed{18", "answer_is", "$ 18"),
        ("The answer is $3 + $15 = $18.", "answer_is", "$3 + $15 = $18"),
        ("An answer is not here", "answer_is", "not here"),
        ("nothing said: 5", "answer_is", None),
        ("$x + 1$", "whole", "x + 1"),
        ("x < -2 or x > 3", "whole", "x < -2 or x > 3"),
        ("Evelyn", "whole", "Evelyn"),
        ("1 or 2 or 3 or 4", "whole", "1 or 2 or 3 or 4"),  # and not its last number
        ("There are 18 of them", "whole", None),
        ("Total 18", "whole", None),
        ("first\nsecond", "whole", None),
        ("$x = 3$, then $y = 4$", "last_expression", "y = 4"),
        ("$x = 3$, so 12 are left", "last_expression", "12"),
        ("She pays $18 per day, or $20 in all.", "last_expression", "20"),  # money, no mathematics
        ("so AZYUK2A", "last_expression", None),
        ("The train arrives at 10:30.", "last_expression", "10:30"),
        ("$x = 3$ makes 1,000.50 in all", "last_number", "1,000.50"),
        ("that is 3/4 of -7", "last_number", "-7"),
        ("about 28 % of it", "last_number", "28%"),
        ("10{,}000 in all", "last_number", "10{,}000"),
    ],
)
def test_rules(text, rule, expected) -> None:
    assert find_answer(text, [rule]) == expected


def test_rules_are_tried_in_order_and_the_box_is_first() -> None:
    assert find_answer("The answer is 5\n#### 6", ["answer_is", "hash"]) == "5"
    assert find_answer("The answer is 5\n#### 6", ["hash", "answer_is"]) == "6"
    assert find_answer("\\boxed{7} The answer is 5\n#### 6", ["hash", "answer_is"]) == "7"
    assert find_answer("The answer is 5") is None


@pytest.mark.parametrize(
    "piece", ["{", "\\boxed{", "1", "1,111", "$", "answer is ", "\\(", "A: ", " ", "\n", "$a", "1 111 ", "\\boxed{1},"]
)
def test_long_texts_are_read_in_time(piece) -> None:
    start = time.perf_counter()
    find_answer(piece * (300_000 // len(piece)), DEFAULT_RULES)
    assert time.perf_counter() - start < 3


def test_blanks_before_a_base_are_read_in_time() -> None:
    start = time.perf_counter()
    assert are_equal_forms("1" + " " * 1900 + "_", "1") is None
    assert are_equal_forms("1 0 1 _ { 2 }", "(101) in base 2") is True
    assert time.perf_counter() - start < 1

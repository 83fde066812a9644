"""Whether two mathematical answers are equal. The only file that imports math-verify; it runs in worker processes."""

from __future__ import annotations

import logging
import math
import re
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any

from unmask.errors import UnmaskError
from unmask.rewards.answer_forms import are_equal_numbers, as_number, as_words, clean
from unmask.rewards.answers import MAX_ANSWER, Rule, find_answer

MEMORY_BYTES = 4 * 2**30  # address space of a worker: a number that outgrows it is an error, not the end of the machine
_MAX_BITS = 300_000.0  # numbers beyond it are not worked out
_UNCLOSED_BOX = re.compile(r"^[^{]*\\boxed\s*\{(?=[^{}]*(?:\{[^{}]*\}[^{}]*)*$)")  # a right answer that was cut out of its box
_ITEMS = re.compile(r",|;|\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![a-z])")
_INSTALL = "pip install 'unmask[math]'"

Question = tuple[str, str, tuple[Rule, ...]]  # the text, what is right, the rules that find the answer in them
Answer = tuple[bool, str | None, str]  # whether it is right, the answer that was found, why


def make_judge() -> Callable[[Question], Answer]:
    """Raises `UnmaskError` where the parser cannot be imported or does not parse."""
    try:
        import math_verify
        import math_verify.parser
    except ImportError as error:
        raise UnmaskError(f"the reward math needs math-verify, which cannot be imported ({error}): {_INSTALL}") from None
    logging.disable(logging.ERROR)
    sys.set_int_max_str_digits(0)
    with suppress(ValueError, OSError):  # a smaller limit is already there
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    equality = Equality(math_verify)
    if not equality("\\frac{\\sqrt{4}}{4}", "0.5") or equality("\\sqrt{2}", "2"):
        raise UnmaskError(f"the reward math needs math-verify, which is there and does not work: {_INSTALL}")

    def judge(question: Question) -> Answer:
        text, gold, rules = question
        wanted = find_answer(_UNCLOSED_BOX.sub("", gold), rules) or gold
        answer = find_answer(text, rules)
        if answer is None or not clean(answer):
            return False, answer, "no answer found"
        if len(answer) > MAX_ANSWER:
            return False, answer[:100], f"{len(answer)} characters are no answer"
        shown = answer.strip()
        if equality(answer, wanted):
            return True, shown, "right"
        return False, shown, f"{shown[:100]} is not {wanted.strip()[:100]}"

    return judge


class Equality:
    """`equality(answer, gold)`: by the letter, as numbers, or else as math-verify reads and compares them."""

    def __init__(self, math_verify: Any):
        self._verify = math_verify.verify
        self._parse = math_verify.parse
        normalization = math_verify.parser.NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
        )  # to it the last letter of 2t is a unit
        # Its reader of plain text evaluates it as Python.
        self._readers = [math_verify.LatexExtractionConfig(normalization_config=normalization)]
        self._read = lru_cache(maxsize=1000)(self._read_once)

    def __call__(self, answer: str, gold: str) -> bool:
        a, b = clean(answer), clean(gold)
        if as_words(a) == as_words(b):
            return True
        one, other = as_number(a), as_number(b)
        if one is not None and other is not None and are_equal_numbers(one, other):
            return True
        if one is not None and other is not None and len(_readings(a)) == len(_readings(b)) == 1:
            return False
        return any(self._is_equal(x, y) for x in _readings(a) for y in _readings(b))

    def _is_equal(self, answer: str, gold: str) -> bool:
        left, right = self._read(answer), self._read(gold)
        return bool(left and right) and self._verify(right, left, timeout_seconds=None)

    def _read_once(self, text: str) -> list[Any]:
        """What math-verify makes of it; nothing where it can make nothing of it, or something that is too large."""
        number = as_number(text)
        if number is not None and number.is_exact:
            text = str(number.value)
        found = self._parse(f"${text}$", self._readers, fallback_mode="no_fallback", parsing_timeout=None)
        return [expression for expression in found if _bits(expression) <= _MAX_BITS]


def _readings(text: str) -> list[str]:
    """The text, and as a list of values where it may be one: `3,5` is a decimal number, too, `[3, 5]` an interval, and
    `x = 3 or x = 5` a list of equations."""
    readings = [text]
    if re.fullmatch(r"-?\d+,-?\d+", text):
        readings.append(text.replace(",", ", "))
    if re.fullmatch(r"\[[^\[\]()]*\]", text):
        readings.append(text[1:-1])
    items = [[side.strip() for side in item.split("=")] for item in _ITEMS.split(text)]
    if len(items) > 1 and all(len(item) == 2 and item[0] == items[0][0] for item in items):
        readings.append(", ".join(value for _, value in items))
    return readings


def _bits(expression: Any) -> float:
    """About how many bits the largest number has that evaluating the expression would write out."""
    from sympy import Pow, Rational, binomial, factorial

    if isinstance(expression, Rational):
        return float(max(1, expression.p.bit_length(), expression.q.bit_length()))
    arguments: list[Any] = list(getattr(expression, "args", ()))
    bits = max(map(_bits, arguments), default=1.0)
    if isinstance(expression, Pow | factorial | binomial) and not expression.free_symbols:
        return max(bits, _bits(arguments[0]) * _two_to(_log2(arguments[-1])))
    return bits


def _log2(expression: Any) -> float:
    """About log2 of the absolute value, rather too large; of what is no number, 64."""
    from sympy import Add, Mul, NumberSymbol, Pow, Rational

    if isinstance(expression, Rational):
        return math.log2(abs(expression.p) or 1) - math.log2(expression.q)
    if isinstance(expression, NumberSymbol):
        return 2.0
    sizes = [_log2(argument) for argument in getattr(expression, "args", ())]
    if not sizes:
        return 64.0
    if isinstance(expression, Pow):
        return abs(sizes[0]) * _two_to(sizes[1])
    if isinstance(expression, Mul):
        return sum(sizes)
    return max(sizes) + math.log2(len(sizes)) if isinstance(expression, Add) else max(sizes)


def _two_to(exponent: float) -> float:
    return 2.0**exponent if exponent < 1000 else math.inf

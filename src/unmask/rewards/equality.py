"""Whether two mathematical answers are equal. The only file that imports math-verify; it runs in worker processes."""

from __future__ import annotations

import cmath
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
from unmask.rewards.answer_forms import as_number, as_words, clean, compare_numbers
from unmask.rewards.answers import MAX_ANSWER, Rule, find_answer
from unmask.rewards.readings import brackets, num_repeated, readings
from unmask.rewards.written_forms import are_equal_forms, choice

MEMORY_BYTES = 4 * 2**30  # address space of a worker: a number that outgrows it is an error, not the end of the machine
_MAX_BITS = 300_000.0  # numbers beyond it are not worked out
_UNCLOSED_BOX = re.compile(r"^[^{]*\\boxed\s*\{(?=[^{}]*(?:\{[^{}]*\}[^{}]*)*$)")  # a right answer that was cut out of its box
_DEGREES = re.compile(
    r"(\\(?:sin|cos|tan|cot|sec|csc)\s*[({]?\s*)(-?\d+(?:\.\d+)?)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))"
)
_IMAGINARY = re.compile(r"(?<![A-Za-z\\_])(?<!_\{)i(?![A-Za-z])")
_LETTER = re.compile(r"\\(?:text|mathrm|operatorname|mathbb|mathcal)\s*\{[^{}]*\}|\\[A-Za-z]+|([A-Za-z])")
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
    known = [("\\frac{\\sqrt{4}}{4}", "0.5"), ("(x + 1)^2", "x^2 + 2x + 1")]  # also loads what the first answer would wait for
    if not all(equality(*pair) for pair in known) or equality("\\sqrt{2}", "2"):
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
        mine, theirs = choice(a), choice(b)
        if mine and theirs and not (mine[1] and theirs[1]):
            return mine[0] == theirs[0]
        if mine and mine[1] and not theirs:  # (C) 12
            a = clean(mine[1])
        verdict = are_equal_forms(a, b)
        if verdict is not None:
            return verdict
        if {brackets(a), brackets(b)} in ({"()", "[]"}, {"()", "{}"}) or num_repeated(a) != num_repeated(b):
            return False
        are_equal = compare_numbers(a, b)
        a, b = _apart(a, b)
        mine_read, theirs_read = readings(a, b), readings(b, a)
        if are_equal or (are_equal is False and len(mine_read) == len(theirs_read) == 1):
            return are_equal
        return any(self._is_equal(x, y) for x in mine_read for y in theirs_read)

    def _is_equal(self, answer: str, gold: str) -> bool:
        left, right = self._read(answer), self._read(gold)
        if not left or not right:
            return False
        if "%" not in answer + gold and (verdict := _compare_values(left[0], right[0])) is not None:
            return verdict
        return bool(self._verify(right, left, timeout_seconds=None, allow_set_relation_comp=True))

    def _read_once(self, text: str) -> list[Any]:
        """What math-verify makes of it; nothing where it can make nothing of it, or something that is too large."""
        number = as_number(text)
        if number is not None and number.is_exact:
            text = str(number.value)
        text = _DEGREES.sub(r"\1{\\frac{\2 \\pi}{180}}", text)
        if not re.search(r"_\s*\{?\s*i", text):  # else an index
            text = _IMAGINARY.sub(" I ", text)
        found = self._parse(f"${text}$", self._readers, fallback_mode="no_fallback", parsing_timeout=None)
        return [expression for expression in found if _bits(expression) <= _MAX_BITS]


def _apart(a: str, b: str) -> tuple[str, str]:
    """Both with other letters for the capitals that are there as small letters, too: math-verify takes R for r."""
    letters = {match[1] for match in _LETTER.finditer(f"{a} {b}") if match[1]}
    both = sorted(letter for letter in letters - {"I"} if letter.isupper() and letter.lower() in letters)
    free = [letter for letter in "qwvuhgkjbdfzyxpstmnlrac" if not {letter, letter.upper()} & letters]
    new = dict(zip(both, free, strict=False))
    one, other = (_LETTER.sub(lambda match: new.get(match[0], match[0]), text) for text in (a, b))
    return one, other


def _compare_values(a: Any, b: Any) -> bool | None:
    """Whether two numbers are equal, if one has a decimal point; False if they surely differ, None else."""
    from sympy import Expr, Float

    if not (isinstance(a, Expr) and isinstance(b, Expr) and a.is_number and b.is_number):
        return None
    one, other = (complex(value.evalf(20)) for value in (a, b))
    if not (cmath.isfinite(one) and cmath.isfinite(other)):
        return None
    are_close = abs(one - other) <= 5e-7 * min(1.0, max(abs(one), abs(other)))
    return are_close if a.has(Float) or b.has(Float) or not are_close else None


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

"""Plain forms of an answer: what is mere typesetting taken away, numbers read as exact fractions, words as words."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

# Typographic characters and their LaTeX; money, and what only moves things about.
_SYMBOLS = str.maketrans(
    {
        "−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "/", "±": "\\pm ", "√": "\\sqrt ", "π": "\\pi ",
        "≤": "\\leq ", "≥": "\\geq ", "≠": "\\neq ", "∞": "\\infty ", "∪": "\\cup ", "∩": "\\cap ", "∈": "\\in ",
        "θ": "\\theta ", "°": "^\\circ ", "²": "^2", "³": "^3", "½": "\\frac{1}{2}", "¼": "\\frac{1}{4}", "¾": "\\frac{3}{4}",
        "\u00a0": " ", "€": "", "£": "", "¥": "", "₹": "",
    }
)  # fmt: skip
_SPACING = re.compile(r"(?<!\\)\\[,!;:> ]|\\q?quad|\\(?:displaystyle|textstyle|limits|hfill|left\.|right\.)(?![A-Za-z])|~")
_ROMAN_LETTER = re.compile(r"\\(?:mathrm|mathit|mathbf|rm|it|bf)\s*\{\s*([A-Za-z])\s*\}")
_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))
# Units: words behind a number or a bracket, of three letters or well known. `2xy` has none. Some words are no units.
_UNIT = re.compile(
    r"(?<=[\d)}%])(?:\s*\\(?:text|mbox|mathrm|textnormal|textbf|textit|rm)\s*\{[^{}]*\}|\s+[A-Za-z][a-z]{2,}\.?"
    r"|\s*(?:cm|km|mm|kg|mg|ml|mL|ft|lb|lbs|oz|hr|hrs|mi|yd|in|mph|kph|sec|min)\b\.?|\s+(?:of|in|an?|sq)(?=\s)|\s?/\s?[a-z]+)+"
    r"(?:\^\{?\d\}?)?(?=\s*(?:[,;]|$))"
)
_NO_UNITS = re.compile(
    r"(?<!\\)\b(?:pi|sqrt|log|ln|sin|cos|tan|exp|or|and|mod|base|half|percent|pct|percentage|infinity|inf|theta|alpha|beta"
    r"|noon|to|times|if|when|for|except|choose|factorial)\b"
)
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLE = re.compile(rf"(?<=\d)\s*(?:\\text\s*\{{\s*)?({'|'.join(_MULTIPLES)})\b\s*(\}})?")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?|[1-9]\d{0,2}(?: \d{3})+(?:\.\d*)?")
_DECIMAL = re.compile(r"\d+(?:[.,]\d*)?|[.,]\d+")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d)\s*(\d))|(\d+)\s*/\s*(\d+)")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)|(\d+)\s*\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit|textnormal|textrm|textsf|operatorname|mathbf)\s*\{([^{}]*)\}")
_TOO_MANY_DIGITS = 1000


class Number(NamedTuple):
    """is_exact: written without a decimal point."""

    value: Fraction
    is_exact: bool


def clean(answer: str) -> str:
    """The answer without delimiters, money, spacing commands, units and a full stop."""
    text = _ROMAN_LETTER.sub(r"\1", answer.translate(_SYMBOLS))
    text = text.replace("{,}", ",").replace("\\$", "").replace("\\%", "%").replace("$", "")
    text = re.sub(r",\\!\s*", ",", text)
    if "\\begin" not in text:  # where a line does not end, two backslashes are one that was escaped twice
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    text = _SPACING.sub(" ", text.replace("\n", " ").replace("\t", " "))
    text = _MULTIPLE.sub(_write_out, text)
    before = None
    while before != text:
        before = text
        text = text.strip().rstrip(".,;:").lstrip("=:").strip()
        for opening, closing in _DELIMITERS:
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                text = text[len(opening) : -len(closing)]
    if _NO_UNITS.search(text):
        return _TEXT.sub(r" \1 ", text).strip()
    return _UNIT.sub("", text).strip()


def _write_out(match: re.Match[str]) -> str:
    """`5 million` as a product; of `5 \\text{ million dollars}` the unit stays in its command."""
    is_open = "{" in match[0] and match[2] is None
    return f"\\times {_MULTIPLES[match[1]]}" + ("\\text{" if is_open else "" if "{" in match[0] else match[2] or "")


def as_number(text: str) -> Number | None:
    """A clean answer that is a number: an integer (also 007 and 1,234), a decimal (also 0,5), a quotient, a mixed number."""
    sign = -1 if text.startswith("-") else 1
    text = text[1:].strip() if text[:1] in ("-", "+") else text
    if not text or len(text) > _TOO_MANY_DIGITS:
        return None
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    if _DECIMAL.fullmatch(text):
        text = text.replace(",", ".")
        return Number(sign * Fraction("0" + text if text[0] == "." else text.rstrip(".")), "." not in text.rstrip("."))
    if match := _MIXED.fullmatch(text):
        whole, top, bottom = (int(group) for group in match.groups() if group is not None)
        return Number(sign * (whole + Fraction(top, bottom)), True) if bottom else None
    if match := _FRACTION.fullmatch(text):
        top, bottom = (int(group) for group in match.groups() if group is not None)
        return Number(sign * Fraction(top, bottom), True) if bottom else None
    return None


def are_equal_numbers(a: Number, b: Number) -> bool:
    """Exactly, if both are exact; else to 5e-7, relative to the larger one if that is below 1."""
    if a.is_exact and b.is_exact:
        return a.value == b.value
    return abs(a.value - b.value) <= Fraction(1, 2_000_000) * min(Fraction(1), max(abs(a.value), abs(b.value)))


def as_words(text: str) -> str:
    """For comparison by the letter: no `\\text`, no outer brackets, no blanks; words without capitals."""
    text = _TEXT.sub(r"\1", text)
    text = re.sub(r"\\left|\\right", "", text).replace(" ", "").strip("{}").rstrip(".")
    if re.fullmatch(r"\(\w\)", text):
        text = text[1:-1]
    return text.casefold() if re.fullmatch(r"[A-Za-z'’,-]{2,}", text) else text

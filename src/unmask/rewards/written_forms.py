"""Answers that are no formulas, though they may look like one: ratios, times, numbers to a base, choices, lists of words."""

from __future__ import annotations

import re
from fractions import Fraction

from unmask.rewards.answer_forms import TEXT, as_number, as_words

_DIGITS = r"\d+(?:\.\d+)?"
_PARTS = re.compile(rf"(?:[^=]*=)?\s*({_DIGITS}(?:\s*(?::|\bto\b)\s*{_DIGITS})+)\s*([aApP])?\.?\s?[mM]?\.?")
_TIME = re.compile(r"\d{1,2}:[0-5]\d(?::[0-5]\d)?")
_TO_BASE = re.compile(  # without blanks
    r"(-?\(?-?[0-9A-Fa-f]+\)?)(?:_\{?\(?(\d+|[a-z]+)\)?\}*|\(?(?:in)?base(\d+|[a-z]+)\)?)"
)
_CHOICE = re.compile(r"(?:(?:option|choice|answer)\s+)?(\()?([A-J])(?:\s*[.:)]\s*|\s*)", re.IGNORECASE)
_WORD_LIST = re.compile(r"[A-Za-z' ]{2,}(?:(?:,| and )[A-Za-z' ]{2,})+")


def are_equal_forms(a: str, b: str) -> bool | None:
    """Whether two clean answers are equal, if one is of such a form; None if a formula may be compared.

    A time is equal to the same time only, a ratio to all in the same proportion and to the quotient; digits to a base are equal
    to the same digits to the same base, or without one.
    """
    for compare in (_compare_parts, _compare_digits, _compare_word_lists):
        verdict = compare(a, b)
        if verdict is not None:
            return verdict
    return None


def _compare_parts(a: str, b: str) -> bool | None:
    one, other = _PARTS.fullmatch(a), _PARTS.fullmatch(b)
    if one is None and other is None:
        return None
    if one is None or other is None:
        parts, number = (other or one), as_number(a if one is None else b)
        assert parts is not None
        values = _values(parts)
        if parts[2] or len(values) > 2 or (number is not None and _TIME.fullmatch(parts[1])):
            return False
        return None if number is None else values[0] == values[1] * number.value
    mine, theirs = _values(one), _values(other)
    if one[2] and other[2] and one[2].lower() != other[2].lower():
        return False
    if _TIME.fullmatch(one[1]) or _TIME.fullmatch(other[1]):
        return mine == theirs
    return len(mine) == len(theirs) and all(x * theirs[0] == y * mine[0] for x, y in zip(mine, theirs, strict=True))


def _values(parts: re.Match[str]) -> list[Fraction]:
    return [Fraction(part) for part in re.split(r"\s*(?::|to)\s*", parts[1])]


def _compare_digits(a: str, b: str) -> bool | None:
    one, other = _digits(a), _digits(b)
    if one and other:
        return one[0] == other[0] and (one[1] == other[1] or any(base.isalpha() for base in (one[1], other[1])))
    digits, plain = (one, b) if one else (other, a)
    return digits[0] == plain.casefold() if digits and re.fullmatch(r"-?[0-9A-Fa-f]+", plain) else None


def _digits(text: str) -> tuple[str, str] | None:
    """Sign with digits, and the base, of `(-1A)_{16}` and `-0x1a`; None for what is none, like the variable `a_1`."""
    if match := re.fullmatch(r"(-?)0x([0-9a-f]+)", text, re.IGNORECASE):
        return (match[1] + match[2]).casefold(), "16"
    match = _TO_BASE.fullmatch(re.sub(r"\s", "", TEXT.sub(r"\1", text)))
    if match is None:
        return None
    digits, base = re.sub(r"[()]", "", match[1]).casefold(), match[2] or match[3]
    has_letters = re.search("[a-f]", digits) is not None
    return None if has_letters and base not in ("12", "16", "hex", "sixteen", "twelve") else (digits, base)


def _compare_word_lists(a: str, b: str) -> bool | None:
    one, other = TEXT.sub(r"\1", a), TEXT.sub(r"\1", b)
    if not _WORD_LIST.fullmatch(one) or not _WORD_LIST.fullmatch(other):
        return None
    mine, theirs = ({as_words(word.strip()) for word in re.split(r",| and ", text) if word.strip()} for text in (one, other))
    return mine == theirs


def choice(text: str) -> tuple[str, str] | None:
    """The letter of a choice and what stands behind it: `(C) 12`, `C: 12`, `Option C`, `C`; None for several choices."""
    text = re.sub(r"\s+", " ", TEXT.sub(r" \1 ", text)).replace("\\ ", " ").strip()
    match = _CHOICE.match(text)
    if match is None or not match[2].isupper():
        return None
    rest = text[match.end() :].strip()
    if rest and (match[0].strip() == match[2] or re.search(r"\([A-J]\)|\b(?:or|and|not)\b", rest)):
        return None
    return match[2], rest

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
        "≈": "\\approx ", "…": "...", "¢": "",
        "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "⅓": "\\frac{1}{3}", "⅔": "\\frac{2}{3}", "⁴": "^4", "⁵": "^5",
        "\u00a0": " ", "€": "", "£": "", "¥": "", "₹": "",
    }
)  # fmt: skip
_TH = r"\s*(?:st|nd|rd|th)\s*"  # 5^{\text{th}}
# What is written in more than one way.
_ALIASES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:textdollar|pounds)(?![A-Za-z])|(?<![A-Za-z])(?:USD|Rs\.?|US(?=\s*\d))(?![A-Za-z])", ""),
        (r"^\s*\\text\s*\{\s*(?:[Tt]he )?(?:[Ff]inal )?[Aa]nswer(?: is)?\s*:?\s*\}|^\s*(?:[Ff]inal )?[Aa]nswer:", ""),
        (r"^\s*\\approx(?![A-Za-z])", ""),
        (r",\s*\.\.\.\s*$", r", \\ldots"),  # a list that goes on is not the same without that
        (r"\\[bB]igg?[lrm]?(?![A-Za-z])", ""),
        (r"\\(?:text)?color\s*\{[a-z]+\}", ""),
        (r"\\(?:boldsymbol|bm|bf|mathbf|mathit|underline)\s*\{((?:[^{}]|\{[^{}]*\})*)\}", r"\1"),
        (r"\\(?:tiny|small|large|Large|huge|Huge|bf|checkmark)(?![A-Za-z])|\\hspace\s*\{[^{}]*\}", " "),
        (r"\\mathbb\s+([A-Z])(?![A-Za-z])", r"\\mathbb{\1}"),
        (r"\\text\s*\{\s*([,:;])\s*\}", r"\1"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\bigcup(?![A-Za-z])", r"\\cup"),
        (r"\\degree(?![A-Za-z])|\^\s*\{?\s*\\text\s*\{\s*o\s*\}\s*\}?", r"^\\circ "),
        (r"(\^\s*\{?\s*\\circ\s*\}?)\s*(?:\\(?:text|mathrm)\s*\{[\s~]*[CF]\s*\}|[CF])$", r"\1"),  # of temperature
        (rf"(?<=\d)\s*(?:\^\s*)?(?:\{{\s*\\text\s*\{{{_TH}\}}\s*\}}|(?:\\(?:text|mathrm))?\s*\{{{_TH}\}})", ""),
        (r"(?<=[\w)}])\s*\*\*\s*(?=[\w({-])", "^"),
        (r"(\\sqrt\[[^\[\]]*\])\s*(\w)", r"\1{\2}"),
        (r"(\\[dtc]?frac)\s*(\\[a-z]+)\s*(\w)", r"\1{\2}{\3}"),
        (r"(\\mathbb\s*\{?R\}?)\s*-\s*(?=\\\{)", r"\1 \\setminus "),
        (r"^\\\{\s*[a-z]\s*(?::|\||\\mid|\\vert)\s*((?:[^{}\\]|\\[a-z]+)*)\\\}$", r"\1"),  # {x | x > 3}
    )
)
_PLAIN_SQRT = re.compile(r"(?<![\\A-Za-z])sqrt\s*(?:\(([^()]*)\)|\{([^{}]*)\})")
_PLAIN_FUNCTION = re.compile(r"(?<![\\A-Za-z])(sin|cos|tan|ln|log|pi)(?![A-Za-z])")
_IN_CASES = re.compile(r",\s*(?=&)|[,.]\s*(?=\\\\)|\\text\s*\{[\s,]*(?:if|for|when|where)\s*\}")
_NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip
# Answers in words that have a symbol.
_SYMBOLS_OF_WORDS = {
    "allrealnumbers": "\\mathbb{R}", "allreals": "\\mathbb{R}", "infinity": "\\infty", "nosolution": "\\emptyset",
    "nosolutions": "\\emptyset", "norealsolution": "\\emptyset", "norealsolutions": "\\emptyset", "emptyset": "\\emptyset",
    **{word: str(number) for number, word in enumerate(_NUMBER_WORDS)},
}  # fmt: skip
_SPACING = re.compile(r"(?<!\\)\\[,!;:> ]|\\q?quad|\\(?:displaystyle|textstyle|limits|hfill|left\.|right\.)(?![A-Za-z])|~")
_ROMAN_LETTER = re.compile(r"(\d(?:\s|\\[,; ])*)?\\(?:mathrm|mathit|mathbf|rm|it|bf)\s*\{\s*([A-Za-z])\s*\}")
_DELIMITERS = (("\\(", "\\)"), ("\\[", "\\]"), ("**", "**"), ("`", "`"))
# Units: words behind a number or a bracket, of three letters or well known. `2xy` and `1/x` have none. Some words are no units.
_UNIT_COMMAND = r"\\(?:text|mbox|mathrm|textnormal|textbf|textit|rm)\s*\{(?!\s*\d)(?:[^{}]|\{[^{}]*\})*\}"
_UNIT = re.compile(
    r"(?:(?<=[\d)}%])|(?<=\\pi)|(?<=\\pi ))"
    rf"(?:\s*(?:(?:/|\\cdot)\s*)?{_UNIT_COMMAND}|\s*\\[dt]?frac\s*\{{\s*{_UNIT_COMMAND}\s*\}}\s*\{{\s*{_UNIT_COMMAND}\s*\}}"
    r"|\s+[A-Za-z][a-z]{2,}\.?|\s?/\s?(?:[a-z]{4,}|day|hr|min|sec|lb|kg|oz|gal)\b|(?<=[a-z])(?<!\\pi)\s?/\s?[a-z]+"
    r"|\s*(?:cm|km|mm|kg|mg|ml|mL|ft|lb|lbs|oz|hr|hrs|mi|yd|in|mph|kph|sec|min|k?m/s|k?m/h)\b\.?"
    r"|\s+(?:of|in|an?|sq)(?=\s))+"
    r"(?:\^\{?-?\d\}?)?(?=\s*(?:[,;]|$))"
)
_NO_UNITS = re.compile(
    r"(?<!\\)\b(?:pi|sqrt|log|ln|sin|cos|tan|exp|or|and|mod|base|half|percent|pct|percentage|infinity|inf|theta|alpha|beta"
    r"|noon|to|times|if|when|for|except|choose|factorial|am|pm|AM|PM|[aApP]\.\s?[mM]"
    r"|(?<=\d )(?:squared|cubed|halves|thirds|tenths|hundredths))\b"
)
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_MULTIPLE = re.compile(rf"(?<=\d)\s*(?:\\text\s*\{{\s*)?({'|'.join(_MULTIPLES)})\b\s*(\}})?")
_THOUSANDS = re.compile(r"[1-9]\d{0,2}(?:,\d{3})+(?:\.\d*)?|[1-9]\d{0,2}(?: \d{3})+(?:\.\d*)?")
_DECIMAL = re.compile(r"\d+(?:[.,]\d*)?|[.,]\d+")
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{\s*(-?\d+)\s*\}\s*\{\s*(-?\d+)\s*\}|(\d)\s*(\d))|(\d+)\s*/\s*(\d+)")
_MIXED = re.compile(r"(\d+)\s+(\d+)\s*/\s*(\d+)|(\d+)\s*\\[dtc]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|textit|textnormal|textrm|textsf|operatorname|mathbf)\s*\{([^{}]*)\}")
_SCIENTIFIC = re.compile(
    r"(\d+(?:\.\d*)?)\s*(?:(?:\\times|\\cdot|\*)\s*\{?10\}?\s*\^\s*(?:\{\s*(-?\d+)\s*\}|(\d))|[eE]([+-]?\d+))"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s*(?:\{\s*(\d+)\s*\}|(\d))")
_PERCENT = re.compile(r"\s*(?:\\?%|percent(?:age)?|pct)$")
_TOO_MANY_DIGITS = 1000


class Number(NamedTuple):
    """is_exact: written without a decimal point."""

    value: Fraction
    is_exact: bool


def clean(answer: str) -> str:
    """The answer without delimiters, money, spacing commands, units and a full stop."""
    text = _ROMAN_LETTER.sub(_plain_letter, answer.translate(_SYMBOLS))
    text = text.replace("{,}", ",").replace("\\$", "").replace("\\%", "%").replace("$", "")
    text = re.sub(r",\\!\s*", ",", text)
    for pattern, replacement in _ALIASES:
        text = pattern.sub(replacement, text)
    if "\\begin{cases}" in text:
        text = _IN_CASES.sub("", text)
    if "\\begin" not in text:  # where a line does not end, two backslashes are one that was escaped twice
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    text = _SPACING.sub(" ", text.replace("\n", " ").replace("\t", " "))
    text = _MULTIPLE.sub(_write_out, text)
    before = None
    while before != text:
        before = text
        text = re.sub(r"[\s.,;:]*\\*$", "", text).lstrip("=: ")
        for opening, closing in _DELIMITERS:
            if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
                text = text[len(opening) : -len(closing)]
    if whole := re.fullmatch(r"\\(?:text|mbox|textbf|textrm)\s*\{(\s*-?\d[^{}]*)\}", text):  # \text{12 apples}
        text = whole[1].strip()
    text = (TEXT.sub(r" \1 ", text) if _NO_UNITS.search(text) else _UNIT.sub("", text)).strip()
    text = _PLAIN_SQRT.sub(lambda match: f"\\sqrt{{{match[1] or match[2]}}}", text)
    text = _PLAIN_FUNCTION.sub(r"\\\1 ", text)
    return _SYMBOLS_OF_WORDS.get(as_words(text), text).strip()


def _plain_letter(match: re.Match[str]) -> str:
    """`\\mathrm{i}` is i; but the m of `5\\mathrm{m}` is a unit."""
    before, letter = match[1] or "", match[2]
    return f"{before}\\text{{{letter}}}" if before and letter in "mgshLNJWV" else before + letter


def _write_out(match: re.Match[str]) -> str:
    """`5 million` as a product; of `5 \\text{ million dollars}` the unit stays in its command."""
    is_open = "{" in match[0] and match[2] is None
    return f"\\times {_MULTIPLES[match[1]]}" + ("\\text{" if is_open else "" if "{" in match[0] else match[2] or "")


def as_number(text: str) -> Number | None:
    """A clean answer that is a number: an integer (also 007 and 1,234), a decimal (also 0,5 and 0.1\\overline{6}), a quotient,
    a mixed number, one times a power of ten."""
    sign = -1 if text.startswith("-") else 1
    text = text[1:].strip() if text[:1] in ("-", "+") else text
    if not text or len(text) > _TOO_MANY_DIGITS:
        return None
    if _THOUSANDS.fullmatch(text):
        text = text.replace(",", "").replace(" ", "")
    if _DECIMAL.fullmatch(text):
        text = text.replace(",", ".")
        return Number(sign * Fraction("0" + text if text[0] == "." else text.rstrip(".")), "." not in text.rstrip("."))
    if match := _SCIENTIFIC.fullmatch(text):
        power = next(group for group in match.groups()[1:] if group is not None)
        if abs(int(power)) > _TOO_MANY_DIGITS:
            return None
        return Number(sign * Fraction(match[1].rstrip(".")) * Fraction(10) ** int(power), "." not in match[1])
    if match := _REPEATING.fullmatch(text):
        before, after, again = match[1] or "0", match[2], match[3] or match[4]
        nines = 10 ** len(again) - 1
        value = int(before) + Fraction(int(after or "0") * nines + int(again), nines * 10 ** len(after))
        return Number(sign * value, True)
    if match := _MIXED.fullmatch(text):
        whole, top, bottom = (int(group) for group in match.groups() if group is not None)
        return Number(sign * (whole + Fraction(top, bottom)), True) if bottom else None
    if match := _FRACTION.fullmatch(text):
        top, bottom = (int(group) for group in match.groups() if group is not None)
        return Number(sign * Fraction(top, bottom), True) if bottom else None
    return None


def compare_numbers(answer: str, gold: str) -> bool | None:
    """Whether two clean answers are equal as numbers, where `28%` is 0.28 and may be 28; None where one is no number.

    Of an answer below 1 the sign means what it says: `0.5%` is not 0.5.
    """
    one, other = (as_number(_PERCENT.sub("", text)) for text in (answer, gold))
    if one is None or other is None:
        return None
    if _PERCENT.search(answer) and not _PERCENT.search(gold):
        means_other = abs(one.value) >= 1 and are_equal_numbers(one, other)
        return means_other or are_equal_numbers(Number(one.value / 100, one.is_exact), other)
    if _PERCENT.search(gold) and not _PERCENT.search(answer):
        return are_equal_numbers(one, other) or are_equal_numbers(one, Number(other.value / 100, other.is_exact))
    return are_equal_numbers(one, other)


def are_equal_numbers(a: Number, b: Number) -> bool:
    """Exactly, if both are exact; else to 5e-7, relative to the larger one if that is below 1."""
    if a.is_exact and b.is_exact:
        return a.value == b.value
    return abs(a.value - b.value) <= Fraction(1, 2_000_000) * min(Fraction(1), max(abs(a.value), abs(b.value)))


def as_words(text: str) -> str:
    """For comparison by the letter: no `\\text`, no outer brackets, no blanks but between digits; words without capitals."""
    text = re.sub(r"\s+", " ", TEXT.sub(r"\1", text))
    text = re.sub(r"^\s*(?:an?|the) (?=[A-Za-z]{2})", "", text)
    text = re.sub(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|(?<!\d) | (?!\d)", "", text).strip("{}").rstrip(".")
    if re.fullmatch(r"\(\w\)", text):
        text = text[1:-1]
    return text.casefold() if re.fullmatch(r"[A-Za-z'’,-]{2,}", text) else text

"""Which part of a text is its answer. Rules by name; they look at the text alone, never at what would be right."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal

Rule = Literal["hash", "answer_is", "whole", "last_expression", "last_number"]
MAX_ANSWER = 2000  # characters; what is longer is no answer

_BOXED = re.compile(r"\\f?box(?:ed)?\s*\{")
_BOXED_SIGN = re.compile(r"\\boxed(?:\s+|(?=[-\d]))([^\s{}$\\]+)")  # \boxed 5, \boxed5
# Between boxed answers that are one list: nothing to read, or `and` and the like with three more words at most.
_BETWEEN = re.compile(r"[^A-Za-z0-9.!?=\n]{0,12}")
_JOINED = re.compile(r"[^.!?\n]{0,40}")
_JOINER = re.compile(r"[,;]|\\q?quad|\b(?:and|or)\b")
_SAYS_MORE = re.compile(
    r"\b(?:is|are|so|thus|then|therefore|hence|not|no|wait|but|answer|gives?|equals?|which)\b", re.IGNORECASE
)

_NUMBER = (
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d{1,3}(?:[ ]\d{3})+(?!\d)|\d{1,3}(?:\{,\}\d{3})+(?!\d)|\d+)(?:\.\d+|,\d{1,2}(?!\d))?|\.\d+"
)
_CURRENCY = r"(?:\\?\$|[€£¥])"
# A number, a time, or a quotient of two numbers, not in the middle of a word.
_EXPRESSION = re.compile(
    rf"(?<![\w.,\\^])(?<!\d:)(?P<sign>[-−+]?)\s?{_CURRENCY}?\s?(?P<number>\d{{1,2}}:\d\d(?!\d)|(?:{_NUMBER})(?:\s?/\s?(?:{_NUMBER}))?)(?P<percent>\s?\\?%)?"
)
# Math between delimiters. A single dollar may be one of money: no blank after the first and before the last, or no words.
_MATH = re.compile(
    r"\$\$(?P<display>[^$]{1,2000}?)\$\$"
    r"|\\\[(?P<bracket>(?:[^\\]|\\[^\[\]]){1,2000}?)\\\]"
    r"|\\\((?P<inline>(?:[^\\\n]|\\[^()\n]){1,2000}?)\\\)"
    r"|(?<![\\\d])\$(?P<dollar>(?:\\.|[^$\n\\]){1,2000}?)\$(?!\d)"
)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_TEXT_COMMAND = re.compile(
    r"\\(?:text|mbox|math|operatorname)[a-z]*\s*\{[^{}]*\}|\\begin\{[^{}]*\}|\\end\{[^{}]*\}|\\[A-Za-z]+"
)

_FUNCTION = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc)|log|ln|exp|sqrt|pi|max|min|gcd|lcm")

_ANSWER_IS = re.compile(
    r"\b(?:[Aa]nswers?|ANSWER)\b[^.\n:=$\\]{0,60}?(?:\bis\b|\bare\b|\bbe\b|[:=])(?:\s*\*\*)?\s*:?"
    r"|^[ \t]*(?:\*\*)?A(?:\*\*)?:|<answer>",
    re.MULTILINE,
)
_VERB = re.compile(r"\b(?:is|are|equals?|be)\b")
_NOT_IT = re.compile(r"\b(?:not|least|most|than|between|either|neither|minus|negative)\W*$", re.IGNORECASE)  # before a number
_HASH = re.compile(r"^[ \t]*####[ \t]*(\S[^\n]{0,2000})", re.MULTILINE)


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` with balanced braces; None if there is none."""
    found = _last_boxes(text, 1)
    return found[0][2] if found else None


def find_answer(text: str, rules: Sequence[Rule] = ()) -> str | None:
    """The last boxed answer; without one, what the first rule finds that finds anything. Of a text with `</think>`, what
    follows the last one counts.

    Boxed answers with hardly more than `,` or `and` between them are one list.
    """
    text = text.rpartition("</think>")[2]
    boxes = _last_boxes(text, 20)
    if boxes:
        together = [boxes[0]]
        for box in boxes[1:]:
            if not _are_one_list(text[box[1] : together[-1][0]]):
                break
            together.append(box)
        contents = dict.fromkeys(content.strip() for _, _, content in reversed(together))
        return ", ".join(contents)
    if signs := _BOXED_SIGN.findall(text):
        return signs[-1]
    text = _BOXED.sub(" ", text)  # of a box that was not closed, the content may still be read
    found = (RULES[rule](text) for rule in rules)
    return next((answer for answer in found if answer), None)


def _are_one_list(between: str) -> bool:
    """Whether two boxed answers with that between them belong together."""
    if _BETWEEN.fullmatch(between):
        return True
    if not _JOINED.fullmatch(between) or not _JOINER.search(between) or _SAYS_MORE.search(between):
        return False
    words = [word for word in _WORD.findall(between.replace("\\text", "")) if word not in ("and", "or", "quad", "qquad")]
    return len(words) <= 3


def _last_boxes(text: str, num: int) -> list[tuple[int, int, str]]:
    """(start, end, content) of the last boxed answers with balanced braces, last one first; of nested ones
    the innermost."""
    ends = _closing_braces(text) if _BOXED.search(text) else {}
    found: list[tuple[int, int, str]] = []
    for match in reversed(list(_BOXED.finditer(text))):
        end = ends.get(match.end() - 1)
        if end is None or (found and end > found[-1][0]):  # never closed, or around the one that was found
            continue
        found.append((match.start(), end + 1, text[match.end() : end]))
        if len(found) == num:
            break
    return found


def _closing_braces(text: str) -> dict[int, int]:
    """Where each opening brace is closed; those that never are, are left out. `\\{` is no brace."""
    ends: dict[int, int] = {}
    open_braces: list[int] = []
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            open_braces.append(match.start())
        elif match[0] == "}" and open_braces:
            ends[open_braces.pop()] = match.start()
    return ends


def _hash(text: str) -> str | None:
    lines = _HASH.findall(text)
    return _head(lines[-1]) if lines else None


def _answer_is(text: str) -> str | None:
    for match in reversed(list(_ANSWER_IS.finditer(text))):
        lines = [line for line in text[match.end() : match.end() + MAX_ANSWER].strip().split("\n") if line.strip(" *$[]\\")]
        if not lines:
            continue
        display = _MATH.match(text[match.end() :].lstrip(" \n*:"))
        if display is not None:
            return next(filter(None, display.groups())).strip()
        if answer := _head(lines[0]):
            return answer
    return None


def _head(line: str) -> str | None:
    """The answer that a line begins with: all of its first sentence, if that is nothing but an answer; or its first math or
    number."""
    line = line.split("</answer>")[0].strip(" *\t")
    sentence = re.split(r"[.!?](?:\s|$)|<\||\*\*|\s(?:because|since|as|so|which)\b", line, maxsplit=1)[0].strip()
    if whole := _whole(sentence):
        return whole
    for part in (_VERB.split(sentence)[-1], sentence):  # The largest n is 34
        candidates = sorted([*_math_spans(part), *_number_spans(part)])
        if not candidates:
            continue
        start, end, content = candidates[0]
        following = next((candidate[0] for candidate in candidates if candidate[0] >= end), end)
        if _NOT_IT.search(part[:start]) or re.search(r"^[^(]*\bor\b", part[end:following]):
            return part.strip()
        return content
    return sentence or None


def _whole(text: str) -> str | None:
    """The text itself, if it is math between delimiters, or one line with hardly a word outside of LaTeX."""
    text = text.strip()
    if not 0 < len(text) <= MAX_ANSWER:
        return None
    if span := _MATH.fullmatch(text):
        return next(filter(None, span.groups())).strip()
    words = [word for word in _WORD.findall(_TEXT_COMMAND.sub(" ", text)) if word not in ("and", "or")]
    has_label = bool(words) and text.startswith(words[0]) and not _FUNCTION.fullmatch(words[0])  # of a number: Total 5
    if has_label and _EXPRESSION.search(text):
        return None
    return text if "\n" not in text and len(words) <= 2 else None


def _math_spans(text: str) -> list[tuple[int, int, str]]:
    """(start, end, content) of math between delimiters."""
    spans = []
    for match in _MATH.finditer(text):
        content = next(filter(None, match.groups()))
        if match["dollar"] is not None:
            plain = _TEXT_COMMAND.sub(" ", content)
            if any(len(word) > 2 and word not in ("and", "percent", "pct") for word in _WORD.findall(plain)):
                continue
        spans.append((match.start(), match.end(), content.strip()))
    return spans


def _number_spans(text: str) -> list[tuple[int, int, str]]:
    spans = []
    for match in _EXPRESSION.finditer(text):
        sign = "-" if match["sign"] in ("-", "−") else ""
        spans.append((match.start(), match.end(), sign + match["number"] + (match["percent"] or "").strip()))
    return spans


def _last_expression(text: str) -> str | None:
    """The last math between delimiters, or the last number where that comes later."""
    spans = [*_math_spans(text), *_number_spans(text)]
    return max(spans, key=lambda span: (span[1], -span[0]))[2] if spans else None


def _last_number(text: str) -> str | None:
    spans = _number_spans(text)
    return spans[-1][2] if spans else None


RULES: dict[Rule, Callable[[str], str | None]] = {
    "hash": _hash,
    "answer_is": _answer_is,
    "whole": _whole,
    "last_expression": _last_expression,
    "last_number": _last_number,
}

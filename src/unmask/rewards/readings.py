"""The ways to read an answer: `3,5` may be a number or a list, `x > 3` is an interval, `x = 1, y = 2` a point."""

from __future__ import annotations

import re

from unmask.rewards.answer_forms import as_number

_ITEMS = re.compile(r",|;|\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![a-z])")
_RELATION = re.compile(r"(\\(?:leq?(?:slant)?|geq?(?:slant)?|lt|gt|neq?)(?![A-Za-z])|<=?|>=?)")
_VARIABLE = re.compile(r"[A-Za-z]|\\theta")
_ALL_EQUAL = re.compile(r"([a-z](?:\s*=\s*[a-z])+)\s*=\s*([^=]*[^=\s][^=]*)")
_NAMES = re.compile(r"(?:\\left)?\(\s*([a-z](?:\s*,\s*[a-z])+)\s*(?:\\right)?\)\s*=\s*(?:\\left)?\((.*?)(?:\\right)?\)")
_COLUMN = re.compile(r"\\begin\{([pb])matrix\}([^&]*)\\end\{\1matrix\}")
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}


def readings(text: str, other: str) -> list[str]:
    """The ways to read a clean answer that is compared with `other`, itself first unless something else is surely meant."""
    if named := _point(text):
        names, values = named
        theirs = _point(other)
        if (theirs is None and brackets(other) == "()") or (theirs is not None and theirs[0] == names):
            return [values]
    found = [text]
    if re.fullmatch(r"(-?\d+),(?!\1$)-?(?:0|[1-9]\d*)", text):  # 5,5 and 1,000 are numbers only
        found.append(text.replace(",", ", "))
    if re.fullmatch(r"-?\d+e[+-]\d", text):  # 3e+2 may be 3 times e
        found.append(text.replace("e", " e "))
    if re.fullmatch(r"\[[^\[\]()]*\]", text) and brackets(other) != "()":
        found.append(text[1:-1])
    items = [[side.strip() for side in item.split("=")] for item in _ITEMS.split(text)]
    if len(items) > 1 and all(len(item) == 2 and item[0] == items[0][0] for item in items):
        found.append(", ".join(value for _, value in items))
    if text.count("\\pm") == 1 and not _ITEMS.search(text):
        found.append(", ".join(text.replace("\\pm", sign) for sign in "+-"))
    if (match := _COLUMN.fullmatch(text)) and brackets(other) == "()":
        found.append(f"({', '.join(match[2].strip().removesuffix(chr(92) * 2).split(chr(92) * 2))})")
    match = re.fullmatch(r"([^=]*[^=\s])\s*=\s*([A-Za-z])", text)
    if match and not _VARIABLE.fullmatch(match[1]):  # 5 = x
        found.append(f"{match[2]} = {match[1]}")
    if match := re.fullmatch(r"[a-zA-Z]\(x\)\s*=([^=]*)", text):
        found.append(f"y = {match[1]}")
    union, theirs_union = _as_union(text), _as_union(other)
    if union is not None and (theirs_union is None or theirs_union[0] == union[0]):
        found.append(union[1])
    return found


def _point(text: str) -> tuple[tuple[str, ...], str] | None:
    """The names in order and the values as a tuple, of `x = 1, y = 2`, of `x = y = 1` and of `(x, y) = (1, 2)`."""
    if (match := _ALL_EQUAL.fullmatch(text)) and not _VARIABLE.fullmatch(match[2]):
        equal = sorted(name.strip() for name in match[1].split("="))
        return tuple(equal), f"({', '.join([match[2]] * len(equal))})"
    if match := _NAMES.fullmatch(text):
        return tuple(name.strip() for name in match[1].split(",")), f"({match[2]})"
    items = [tuple(side.strip() for side in item.split("=")) for item in _ITEMS.split(text)]
    names = [item[0] for item in items]
    if len(items) < 2 or any(len(item) != 2 for item in items) or len(set(names)) < len(names):
        return None
    if not all(_VARIABLE.fullmatch(name) for name in names):
        return None
    return tuple(sorted(names)), f"({', '.join(value for _, value in sorted(items))})"


def _as_union(text: str) -> tuple[str, str] | None:
    """The variable and its values, of inequalities: `x < -2 or x > 3`."""
    text = text.replace("\\left", "").replace("\\right", "")
    parts = [_as_interval(part) for part in re.split(r"\\text\s*\{\s*or\s*\}|(?<![A-Za-z\\])or(?![a-z])", text)]
    found = [part for part in parts if part is not None]
    if len(found) < len(parts) or len({variable for variable, _ in found}) != 1:
        return None
    return found[0][0], " \\cup ".join(interval for _, interval in found)


def _as_interval(text: str) -> tuple[str, str] | None:
    sides = [side.strip() for side in _RELATION.split(text)]
    if len(sides) not in (3, 5) or not all(sides):
        return None
    terms, signs = sides[::2], [_sign(relation) for relation in sides[1::2]]
    if any(sign.startswith(">") for sign in signs):
        terms, signs = terms[::-1], [_TURNED[sign] for sign in signs[::-1]]
    if len(terms) == 2:
        left_is_variable = _VARIABLE.fullmatch(terms[0]) is not None
        if signs == ["!="]:
            variable, value = terms if left_is_variable else terms[::-1]
            return (variable, f"(-\\infty, {value}) \\cup ({value}, \\infty)") if _VARIABLE.fullmatch(variable) else None
        terms, signs = (["-\\infty", *terms], ["<", *signs]) if left_is_variable else ([*terms, "\\infty"], [*signs, "<"])
    if not _VARIABLE.fullmatch(terms[1]) or not set(signs) <= {"<", "<="}:
        return None
    opening, closing = "(" if signs[0] == "<" else "[", ")" if signs[1] == "<" else "]"
    return terms[1], f"{opening}{terms[0]}, {terms[2]}{closing}"


def _sign(relation: str) -> str:
    if "n" in relation.replace("slant", ""):
        return "!="
    return ("<" if relation.startswith(("<", "\\l")) else ">") + ("=" if re.search("[e=]", relation) else "")


def brackets(text: str) -> str:
    """The outer brackets of several values: `()`, `[)`, `{}`; empty where there are none."""
    text = re.sub(r"\\left(?![A-Za-z])|\\right(?![A-Za-z])|\s", "", text)
    if not text.startswith(("(", "[", "\\{")):
        return ""
    text = text.replace("\\{", "{").replace("\\}", "}")
    depth, commas = 0, 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        commas += character == "," and depth == 1
        if depth == 0 and i < len(text) - 1:
            return ""
    return text[0] + text[-1] if commas and depth == 0 else ""


def num_repeated(text: str) -> int:
    """How many values of a list are there before: `2, 3, 3` has one."""
    if as_number(text) is not None:
        return 0
    text = text[1:-1] if brackets(text) == "[]" else text
    items = [""]
    depth = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            items.append("")
        else:
            items[-1] += character
    return len(items) - len({item.strip() for item in items})

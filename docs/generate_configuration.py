"""Writes the tables of docs/configuration.md from the recipe types, so that the page cannot drift from the code.

    python docs/generate_configuration.py            rewrite the tables in place
    python docs/generate_configuration.py --check    exit with 1 when the page is stale

A table stands between `<!-- table: NAME -->` and `<!-- /table -->`; the text around it is written by hand. A key's meaning
is the `description` of its pydantic field.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from unmask.attention import BACKENDS
from unmask.config import EvalRecipe, Plugin, RlRecipe, ServerConfig, SftRecipe
from unmask.data.sources import SOURCES
from unmask.diffusion.remasking import STRATEGIES
from unmask.models import FAMILIES, Decoder
from unmask.objectives import RL_OBJECTIVES, SFT_OBJECTIVES
from unmask.objectives.advantages import ADVANTAGES
from unmask.rewards import REWARDS
from unmask.types import SamplingParams

PAGE = Path(__file__).with_name("configuration.md")
NONE = "not set"

_PLURAL_OF = {"source": "sources", "reward": "rewards", "objective": "objectives"}
_COMPARATORS = (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
Row = tuple[str, str, str, str]


def meaning_of(owner: str, name: str, info: FieldInfo) -> str:
    text = info.description
    if not text:
        raise SystemExit(f"error: {owner}.{name} has no description; give its Field(...) one")
    return text


def type_of(info: FieldInfo) -> str:
    """A field's type and limits in words."""
    annotation: Any = info.annotation
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(a for a in get_args(annotation) if a is not NoneType)
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{json.dumps(value)}`" for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        of = get_args(annotation)[0]
        of = get_args(of)[0] if get_origin(of) is Annotated else of
        values = ", ".join(f"`{json.dumps(value)}`" for value in get_args(of)) if get_origin(of) is Literal else ""
        return f"list of {values or {int: 'integers', float: 'numbers', str: 'texts'}[of]}"
    if get_origin(annotation) is dict:
        return "table"
    words = {bool: "true or false", int: "integer", float: "number", str: "text"}[annotation]
    limits = [f"{sign} {_number(getattr(m, key))}" for m in info.metadata for key, sign in _COMPARATORS if hasattr(m, key)]
    return f"{words} {' and '.join(limits)}" if limits else words


def _number(value: float) -> str:
    return "2^" + str(value.bit_length() - 1) if isinstance(value, int) and value > 10**6 else str(value)


def default_of(value: Any) -> str:
    return NONE if value is None else f"`{json.dumps(value)}`"


def rows_of(kind: type[BaseModel], default: BaseModel | None, prefix: str = "", owner: str = "") -> Iterator[Row]:
    """Every key of a table and of the tables in it; `default` is the table as it is when nothing is given."""
    owner = owner or kind.__name__
    for name, info in kind.model_fields.items():
        key = prefix + name
        if default is not None:
            value = getattr(default, name)
        elif info.is_required():
            value = ...
        else:
            value = info.get_default(call_default_factory=True, validated_data={})
        candidates = [c for c in (info.annotation, *get_args(info.annotation)) if inspect.isclass(c)]
        table = next((c for c in candidates if issubclass(c, BaseModel)), None)
        if table is not None and get_origin(info.annotation) is tuple:
            yield key, "list of tables", "required" if value is ... else "`[]`", meaning_of(owner, name, info)
            yield from rows_of(table, None, f"{key}[].")
        elif table is None:
            yield key, type_of(info), "required" if value is ... else default_of(value), meaning_of(owner, name, info)
        elif table is Plugin:
            plural = _PLURAL_OF.get(name, "rewards")  # a reward may name another, by any word
            given = {"required": value is ..., "name": getattr(value, "name", None), "options": getattr(value, "options", None)}
            note = f"; {info.description}" if info.description else ""
            first = "required" if given["required"] else default_of(given["name"])
            yield f"{key}.name", "text", first, f"one of the [{plural}](#{plural}){note}"
            yield f"{key}.options", "table", NONE if value is None else "`{}`", f"see [{plural}](#{plural})"
        elif table is SamplingParams:
            is_map = "dict" in str(info.annotation)
            note = "; NAME is free, `static` and `dynamic` are always there" if is_map else ""
            target = "[sampling parameters](#sampling-parameters)"
            yield f"{key}.{'NAME.' if is_map else ''}*", "table", "see there", f"{target}{note}"
        elif get_origin(info.annotation) is dict:
            yield from rows_of(table, None, f"{key}.NAME.")
        else:
            yield from rows_of(table, None if value is ... else value, f"{key}.")


def table(rows: Iterator[Row]) -> str:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, *cells in rows:
        lines.append(f"| `{key}` | " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |")
    return "\n".join(lines)


def first_sentence(thing: Any) -> str:
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def parts(registry: dict[str, Any], prefix: str) -> str:
    """Each registered part: what it is, and its options; those that share them together."""
    chapters = []
    for options in dict.fromkeys(part.Options for part in registry.values()):
        sharing = {name: part for name, part in registry.items() if part.Options is options}
        rows = rows_of(options, None, prefix, owner=next(iter(sharing)))
        part = next(iter(sharing.values()))
        thing = inspect.getmodule(part) if inspect.isclass(part) else options
        chapters.append(f"#### {', '.join(f'`{name}`' for name in sharing)}\n\n{first_sentence(thing)}\n\n{table(rows)}")
    return "\n\n".join(chapters)


def names(registry: dict[str, Any], describe: Callable[[Any], str]) -> str:
    lines = ["| name | meaning |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {describe(part)} |" for name, part in registry.items())])


def presets() -> str:
    lines = ["| preset | parameters | layers | width | heads (key/value) | vocabulary |", "|---|---|---|---|---|---|"]
    for family in FAMILIES.values():
        for size, config in family.presets.items():
            spec = family.spec(config)
            with torch.device("meta"):
                count = sum(p.numel() for p in Decoder(spec).parameters())
            heads = f"{spec.num_heads} ({spec.num_kv_heads})"
            cells = (f"{count:,}", spec.num_layers, spec.hidden_size, heads, spec.vocab_size)
            lines.append(f"| `{family.name}/{size}` | " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "SftRecipe": lambda: table(rows_of(SftRecipe, None)),
    "RlRecipe": lambda: table(rows_of(RlRecipe, None)),
    "EvalRecipe": lambda: table(rows_of(EvalRecipe, None)),
    "ServerConfig": lambda: table(rows_of(ServerConfig, None, "server.")),
    "SamplingParams": lambda: table(rows_of(SamplingParams, None)),
    "sources": lambda: parts(SOURCES, "source.options."),
    "sft objectives": lambda: parts(SFT_OBJECTIVES, "objective.options."),
    "rl objectives": lambda: parts(RL_OBJECTIVES, "objective.options."),
    "rewards": lambda: parts(REWARDS, "reward.options."),
    "strategies": lambda: names(STRATEGIES, lambda strategy: first_sentence(type(strategy))),
    "advantages": lambda: names(ADVANTAGES, first_sentence),
    "backends": lambda: names(BACKENDS, lambda backend: first_sentence(inspect.getmodule(backend))),
    "presets": presets,
}


def render(page: str) -> str:
    """The page with every table written anew. Raises `KeyError` for a table of an unknown name."""
    pattern = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- /table -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}", page)


def main(arguments: list[str]) -> int:
    page = PAGE.read_text(encoding="utf-8")
    fresh = render(page)
    if "--check" in arguments:
        print(f"{PAGE}: {'up to date' if fresh == page else 'stale; run python docs/generate_configuration.py'}")
        return int(fresh != page)
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

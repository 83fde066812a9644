"""From TOML files and `section.key=value` words to a checked recipe: defaults < files, left to right < words."""

from __future__ import annotations

import copy
import difflib
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from unmask.errors import UnmaskError

Model = TypeVar("Model", bound=BaseModel)


def load_recipe(
    kind: type[Model], files: Sequence[Path], overrides: Sequence[str] = (), base: dict[str, Any] | None = None
) -> Model:
    """Merges `base`, files from left to right, then overrides, and checks the result.

    Raises `UnmaskError` naming the file or word, the key, what was found, and for unknown keys the nearest known one.
    """
    merged: dict[str, Any] = copy.deepcopy(base or {})
    origin: dict[str, str] = {}
    for file in files:
        _merge(merged, read_toml(file), origin, str(file))
    for word in (*overrides, *overrides):  # twice: a part's options may stand before its name
        _merge(merged, _parse_word(word), origin, f"{word!r}")
    return check(kind, merged, origin)


def parse_settings(words: Sequence[str]) -> dict[str, Any]:
    """`key=value` words as a table, unchecked; later ones win. Raises `UnmaskError` for a word of another form."""
    merged: dict[str, Any] = {}
    for word in words:
        _merge(merged, _parse_word(word), {}, word)
    return merged


def check(kind: type[Model], values: dict[str, Any], origin: dict[str, str] | str = "") -> Model:
    """Validates values against a pydantic model; `origin` says where each dotted key came from. Numbers have to be finite."""
    if (key := _find_infinite(values)) is not None:
        where = origin if isinstance(origin, str) else _origin_of(key, origin)
        raise UnmaskError(f"{where}: {key} should be a finite number" if where else f"{key} should be a finite number")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UnmaskError(_explain(kind, error, origin)) from None


def to_toml(recipe: BaseModel) -> str:
    """The whole recipe, defaults included, as TOML that loads back equal (settings that are None are left out)."""
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))


def read_toml(file: Path) -> dict[str, Any]:
    """A parsed TOML file. Raises `UnmaskError` naming the file and line."""
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UnmaskError(f"{file}: no such recipe file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UnmaskError(f"{file}: cannot be read ({error})") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError among them
        raise UnmaskError(f"{file}: not valid TOML: {error}") from None


def recipe_of_run(checkpoint: str) -> dict[str, Any]:
    """The recipe of the run folder that this is, or that a checkpoint belongs to; empty where there is none. Raises
    `UnmaskError`."""
    folder = Path(checkpoint)
    for candidate in (folder, folder.resolve().parent.parent) if folder.is_dir() else ():
        if (candidate / "recipe.toml").exists() and (candidate / "checkpoints").is_dir():
            return read_toml(candidate / "recipe.toml")
    return {}


def _parse_word(word: str) -> dict[str, Any]:
    key, equals, text = word.partition("=")
    if not equals or not key.strip():
        raise UnmaskError(f"{word!r}: an override has the form section.key=value")
    tree: Any = _parse_value(text)
    for part in reversed(key.strip().split(".")):
        tree = {part: tree}
    return tree


def _parse_value(text: str) -> Any:
    """A TOML value if it is one, else the text itself: `lr=1e-3`, `name=math`, `ids=[1, 2]` all mean what they say."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):  # TOMLDecodeError among them
        return text


def _merge(into: dict[str, Any], new: dict[str, Any], origin: dict[str, str], where: str, prefix: str = "") -> None:
    if "name" in new and "options" in into and new["name"] != into.get("name"):
        into.pop("options")  # they belonged to the part that had this place before
    for key, value in new.items():
        origin[prefix + key] = where
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value, origin, where, f"{prefix}{key}.")
        else:
            into[key] = value
            if isinstance(value, dict):
                into[key] = {}
                _merge(into[key], value, origin, where, f"{prefix}{key}.")


def _explain(kind: type[BaseModel], error: ValidationError, origin: dict[str, str] | str) -> str:
    """One line for the first thing that is wrong; unknown keys first, since they often explain the rest."""
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    problem = problems[0]
    key = ".".join(str(part) for part in problem["loc"])
    where = origin if isinstance(origin, str) else _origin_of(key, origin)
    prefix = f"{where}: " if where else ""
    if problem["type"] == "extra_forbidden":
        parent = _model_at(kind, problem["loc"][:-1])
        known = list(parent.model_fields) if parent else []
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
        path = ".".join([*(str(p) for p in problem["loc"][:-1]), near[0]]) if near else ""
        hint = f"; the nearest known key is {path!r}" if near else ""
        return f"{prefix}unknown key {key!r}{hint}"
    if problem["type"] == "missing":
        return f"{prefix}key {key!r} is missing and has no default"
    message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f", found {problem['input']!r}"
    return f"{prefix}{key}: {message}{found}" if key else f"{prefix}{message}"


def _find_infinite(values: Any, key: str = "") -> str | None:
    """The dotted key of the first number that is infinite or none at all."""
    if isinstance(values, dict | list | tuple):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        found = (_find_infinite(value, f"{key}.{name}" if key else str(name)) for name, value in items)
        return next((name for name in found if name is not None), None)
    return key if isinstance(values, float) and not math.isfinite(values) else None


def _origin_of(key: str, origin: dict[str, str]) -> str:
    while key and key not in origin:
        key = key.rpartition(".")[0]
    return origin.get(key, "recipe")


def _model_at(kind: type[BaseModel], path: Sequence[Any]) -> type[BaseModel] | None:
    for part in path:
        if part not in kind.model_fields:
            return None
        annotation = kind.model_fields[part].annotation
        candidates = [c for c in (annotation, *get_args(annotation)) if isinstance(c, type) and issubclass(c, BaseModel)]
        if not candidates:
            return None
        kind = candidates[0]
    return kind

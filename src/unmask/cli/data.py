"""`unmask data show`, `check` and `convert`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rich.console import Console
from rich.table import Table

from unmask.config import Plugin, parse_settings, plugin_options, read_toml
from unmask.errors import UnmaskError
from unmask.files import new_file
from unmask.types import Example

if TYPE_CHECKING:
    from unmask.data.chat import ChatTokenizer
    from unmask.data.sources import Source, Split


def run_show(name: str, settings: list[str], num: int, checkpoint: str, split: str) -> None:
    """Prints a table of counts, then the first examples of each split. Raises `UnmaskError`."""
    splits = find_splits(split)
    plugin, seed = find_source(name, settings)
    tokenizer = _load_tokenizer(checkpoint) if checkpoint else None
    sources, missing = _open_splits(plugin, splits, seed)
    columns = {of: _facts(source, tokenizer) for of, source in sources.items()}
    table = Table(plugin.name, *columns)
    for fact in next(iter(columns.values())):
        table.add_row(fact, *(column[fact] for column in columns.values()))
    Console(highlight=False).print(table)
    for reason in missing:
        print(reason)
    for of, source in sources.items():
        for i in range(min(num, len(source))):
            print(f"\n=== {of} {source[i].id} ===\n{_render(source[i], tokenizer)}")


def run_check(name: str, settings: list[str], max_errors: int, split: str) -> None:
    """Reads every row. Malformed ones are named on stderr; then an `UnmaskError` says how many there are."""
    splits = find_splits(split)
    plugin, seed = find_source(name, settings)
    errors: list[UnmaskError] = []
    sources, missing = _open_splits(plugin, splits, seed, errors)
    questions = {
        of: Counter(_questions(source, has_shots=bool(plugin.options.get("num_shots")))) for of, source in sources.items()
    }
    for of, counts in questions.items():
        print(f"{of}: {counts.total()} good rows, {sum(n - 1 for n in counts.values())} with the same prompt as an earlier one")
    for reason in missing:
        print(reason)
    if len(questions) == 2:
        train, held_out = questions.values()
        print(f"in both splits: {len(train.keys() & held_out.keys())} prompts")
    messages = list(dict.fromkeys(map(str, errors)))  # rows of one file may have been read for either split
    for message in messages[:max_errors]:
        print(message, file=sys.stderr)
    if messages:
        rest = f", {len(messages) - max_errors} of them not shown (--max-errors)" if len(messages) > max_errors else ""
        raise UnmaskError(f"{len(messages)} malformed rows{rest}")


def run_convert(name: str, output: Path, settings: list[str], split: str, overwrite: bool) -> None:
    """Writes the rows whole or not at all. Raises `UnmaskError`, also for a file that is there already."""
    from unmask.data.jsonl import to_row
    from unmask.data.sources import open_source

    if output.is_dir() or (output.exists() and not overwrite):
        raise UnmaskError(f"{output}: exists; choose another name" + ("" if output.is_dir() else ", or --overwrite"))
    [of] = find_splits(split or "train")
    plugin, seed = find_source(name, settings)
    source = open_source(plugin, of, seed)
    with new_file(output) as temporary, open(temporary, "w", encoding="utf-8") as lines:
        for i in range(len(source)):
            lines.write(json.dumps(to_row(source[i]), ensure_ascii=False) + "\n")
    print(f"{len(source)} rows", file=sys.stderr)
    print(output)


def find_splits(name: str) -> tuple[Split, ...]:
    from unmask.data.sources import Split

    if name and name not in get_args(Split):
        raise UnmaskError(f"unknown split {name!r}; known: {', '.join(get_args(Split))}")
    return tuple(split for split in get_args(Split) if name in ("", split))


def find_source(name: str, settings: list[str]) -> tuple[Plugin, int]:
    """The source of that name, of a recipe, or of a file's rows, with its options checked; and the recipe's seed (else 0)."""
    from unmask.data.sources import SOURCES

    recipe: dict[str, Any] = {"source": {"name": name}}
    if name not in SOURCES and name.endswith(".toml"):
        recipe = read_toml(Path(name))
    elif name not in SOURCES and (Path(name).exists() or Path(name).suffix in (".json", ".jsonl", ".parquet")):
        recipe = {"source": {"name": "jsonl", "options": {"path": name}}}
    source, run = recipe.get("source"), recipe.get("run", {})
    if not isinstance(source, dict) or not isinstance(source.get("name"), str):
        raise UnmaskError(f"{name}: has no source.name")
    plugin = Plugin(name=source["name"], options={**source.get("options", {}), **parse_settings(settings)})
    plugin_options(SOURCES, plugin, "source")
    return plugin, run.get("seed", 0)


def _open_splits(
    plugin: Plugin, splits: Sequence[Split], seed: int, errors: list[UnmaskError] | None = None
) -> tuple[dict[Split, Source], list[str]]:
    """Those that have rows, and why the others have none. Raises `UnmaskError` if there is no row at all.

    errors: malformed rows are collected here, where a source is made of rows; the first of any other is raised.
    """
    from unmask.data.row_source import RowOptions
    from unmask.data.rows import NoRowsError
    from unmask.data.sources import SOURCES

    options = plugin_options(SOURCES, plugin, "source")
    collecting = {"errors": errors} if errors is not None and isinstance(options, RowOptions) else {}
    sources, missing = {}, []
    for split in splits:
        try:
            sources[split] = SOURCES[plugin.name](options, split, seed, **collecting)
        except NoRowsError as error:
            missing.append(f"{split}: none ({error})")
    if not sources:
        raise UnmaskError("; ".join(missing))
    return sources, missing


def _load_tokenizer(checkpoint: str) -> ChatTokenizer:
    from unmask.data.chat import ChatTokenizer
    from unmask.launch import find_model_folder

    return ChatTokenizer.load(find_model_folder(checkpoint, weights=False))


def _questions(source: Source, has_shots: bool) -> list[str]:
    """The turns of each example (of one with shots the last), equal up to white space."""
    turns = (source[i].messages[-1 if has_shots else 0 :] for i in range(len(source)))
    return ["\n".join(" ".join([m.role, *m.content.split()]) for m in messages) for messages in turns]


def _facts(source: Source, tokenizer: ChatTokenizer | None) -> dict[str, str]:
    """A column of the table."""
    examples = [source[i] for i in range(len(source))]
    unit = "tokens" if tokenizer else "characters"
    prompts = [len(tokenizer.prompt_ids(e)) if tokenizer else sum(len(m.content) for m in e.messages) for e in examples]
    with_response = [e for e in examples if e.response is not None]
    responses = [len(tokenizer.response_ids(e)) if tokenizer else len(e.response or "") for e in with_response]
    return {
        "rows": str(len(examples)),
        "with an answer": str(sum(e.answer is not None for e in examples)),
        "with tests": str(sum(e.tests is not None for e in examples)),
        "with a response": str(len(with_response)),
        f"prompts, {unit}: median, 90 %, longest": _percentiles(prompts),
        f"responses, {unit}: median, 90 %, longest": _percentiles(responses),
        "hash": source.dataset_hash,
    }


def _percentiles(lengths: list[int]) -> str:
    """Nearest ranks."""
    if not lengths:
        return "-"
    ordered = sorted(lengths)
    return ", ".join(str(ordered[-(-len(ordered) * percent // 100) - 1]) for percent in (50, 90, 100))


def _render(example: Example, tokenizer: ChatTokenizer | None) -> str:
    if tokenizer:
        text = tokenizer.prompt_text(example)
        parts = [f"{text}\n--- prompt: {len(tokenizer.prompt_ids(example))} tokens"]
    else:
        turns = "\n".join(f"[{m.role}] {m.content}" for m in example.messages)
        prefix = f"\n[assistant] {example.response_prefix}" if example.response_prefix else ""
        parts = [f"{turns}{prefix}\n--- prompt: {sum(len(m.content) for m in example.messages)} characters"]
    if example.response is not None:
        num = f"{len(tokenizer.response_ids(example))} tokens" if tokenizer else f"{len(example.response)} characters"
        parts.append(f"{example.response}\n--- response: {num}")
    if example.answer is not None:
        parts.append(f"--- answer: {example.answer}")
    if tests := example.tests:
        first = tests.test_list[0] if tests.test_list else f"{tests.test_input[0]!r} -> {tests.test_output[0]!r}"
        num_tests = len(tests.test_list or tests.test_input)
        parts.append(f"--- tests: {num_tests} ({tests.test_method}, {tests.test_time_limit:g} s each), the first:\n{first}")
    return "\n".join(parts)

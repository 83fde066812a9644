"""`unmask inspect` and `unmask checkpoint new|export|adapt`."""

from __future__ import annotations

import json
import math
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import UnmaskError

if TYPE_CHECKING:
    from unmask.models.decoder import Backbone


def run_inspect(checkpoint: str, revision: str, as_json: bool) -> None:
    """Prints a table (or JSON) of what a checkpoint or preset is, without loading weights. Raises `UnmaskError`."""
    from unmask.launch import find_model_folder

    facts: dict[str, Any]
    problem: UnmaskError | None = None
    if not Path(checkpoint).exists() and (preset := _find_preset(checkpoint)) is not None:
        facts = preset
    else:
        from unmask.models.describe import describe_checkpoint

        facts, problem = describe_checkpoint(find_model_folder(checkpoint, revision, weights=False))
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        _print_table(checkpoint, facts)
    if problem is not None:
        raise problem


def _print_table(title: str, facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    for key, value in facts.items():
        table.add_row(key, f"{value:,}" if isinstance(value, int) and "token" not in key else str(value))
    Console(highlight=False).print(table)


def _find_preset(name: str) -> dict[str, Any] | None:
    import torch

    from unmask.models import FAMILIES, Decoder, preset_config
    from unmask.models.describe import describe_size, describe_spec

    family = FAMILIES.get(name.partition("/")[0])
    if family is None:
        return None
    spec = family.spec(preset_config(name))
    with torch.device("meta"):
        model = Decoder(spec)
    return {**describe_spec(spec), **describe_size(model), "weights": "none: a preset, randomly initialised"}


def run_new(preset: str, output: Path, settings: list[str], seed: int, dtype: str) -> None:
    """Writes a randomly initialised model folder. Raises `UnmaskError`."""
    from unmask.config import parse_settings
    from unmask.models.checkpoint import check_target, new_model_from, save_model

    check_target(output)
    save_model(new_model_from(preset, seed, parse_settings(settings), dtype=dtype), output)
    print(output)


def run_export(
    checkpoint: str, output: Path, adapter: Path | None, dtype: str, max_shard_gb: float, revision: str, *,
    has_own_head: bool, code_from: str,
) -> None:  # fmt: skip
    """Writes a plain model folder, with an adapter merged into the weights. Raises `UnmaskError`.

    has_own_head: a tied head is written as a tensor of its own. code_from: a checkpoint whose code comes along.
    """
    from unmask.launch import find_model_folder
    from unmask.models.checkpoint import check_target, find_dtype, load_model, read_spec, save_model, weights_folder
    from unmask.models.export import carried_with_code, untie_head, with_older_names
    from unmask.models.weights import read_headers, stored_dtype

    if not 0 < max_shard_gb < math.inf:
        raise UnmaskError(f"--max-shard-gb {max_shard_gb} must be a number above 0")
    check_target(output)
    folder = find_model_folder(checkpoint, revision)
    _, family, _ = read_spec(folder)
    stored = read_headers(weights_folder(folder))
    target = stored_dtype(stored) if dtype == "auto" else find_dtype(dtype)
    model: Backbone
    exact = target if adapter is None else "float32"  # an adapter is merged in float32, and rounded once
    if family.to_checkpoint_name("value_head.weight") in stored:
        model = load_model(folder, dtype=exact, head="value")
    else:
        model = load_model(folder, dtype=exact)
    if adapter is not None:
        from unmask.models.lora import load_adapter, merge_adapter

        model = merge_adapter(load_adapter(model, adapter)).to(target)
    model.config = with_older_names(model.config, model.spec)
    if has_own_head:
        untie_head(model)
    with carried_with_code(model, code_from) if code_from else nullcontext() as carried:
        save_model(model, output, tokenizer_from=carried, max_shard_bytes=int(max_shard_gb * 1e9))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters as {str(target).removeprefix('torch.')}", file=sys.stderr)
    print(output)


def run_adapt(checkpoint: str, output: Path, block_size: int | None, revision: str) -> None:
    """Writes an autoregressive model as a diffusion model, with a mask token in its tokenizer. Raises `UnmaskError`."""
    import tempfile

    from unmask.data.chat import ChatTokenizer
    from unmask.models import FAMILIES
    from unmask.models.adapt import adapt_model, adapted_family
    from unmask.models.checkpoint import check_target, save_model
    from unmask.models.hub import resolve_folder

    check_target(output)
    folder = resolve_folder(checkpoint, revision or None)
    family = FAMILIES[adapted_family(folder)]
    tokenizer = ChatTokenizer.load(folder)
    tokenizer.complete(family.mask_token)
    model = adapt_model(folder, tokenizer.special_ids, len(tokenizer.tokenizer), block_size)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(Path(scratch))
        save_model(model, output, tokenizer_from=scratch)
    spec = model.spec
    print(f"{family.name}, {spec.attention} attention, mask token {spec.mask_token_id}; to be trained", file=sys.stderr)
    print(output)

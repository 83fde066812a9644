"""What other tools want of a model folder beyond what loads here: older names of keys, a head of its own, published code."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.files import read_json
from unmask.models import find_family
from unmask.models.decoder import Backbone, Decoder
from unmask.models.hub import carry_files, resolve_folder
from unmask.models.spec import ModelSpec


def with_older_names(config: Mapping[str, Any], spec: ModelSpec) -> dict[str, Any]:
    """The config with `rope_theta` and `rope_scaling` beside `rope_parameters`, where these alone say how to rotate.

    Configs that a newer transformers has written have the latter alone. The published code of SDAR and Dream, and the servers
    that follow it, read the former and would silently take their defaults.
    """
    filled = dict(config)
    if filled.get("rope_parameters") is not None:
        if filled.get("rope_theta") is None:
            filled["rope_theta"] = spec.rotary.theta
        if spec.rotary.scaling and filled.get("rope_scaling") is None:
            filled["rope_scaling"] = dict(spec.rotary.scaling)
    return filled


def untie_head(model: Backbone) -> None:
    """From now on the model is saved with a head of its own, equal to the embedding, and a config that says so.

    In memory nothing changes. Without effect on models whose head is not tied, and on value models.
    """
    if not isinstance(model, Decoder) or not model.spec.is_tied:
        return
    family = find_family(model.config)
    ids = {"mask_token_id": model.spec.mask_token_id, "eos_token_id": list(model.spec.eos_token_ids)}
    for key in ("tie_word_embeddings", "weight_tying"):
        untied = {**model.config, key: False}
        if not family.spec({**untied, **ids}).is_tied:  # some configs leave the ids to the tokenizer
            model.config, model.stores_tied_head = untied, True
            return
    raise AssertionError(f"no key unties the head of {family.name}")


@contextmanager
def carried_with_code(model: Backbone, code_from: str) -> Iterator[Path]:
    """A folder with the files that are carried along with the model, and the Python files of a published checkpoint.

    The model's config names that code (`auto_map`) as the published one does. It is copied, and never run. code_from: a model
    folder or hub name. Raises `UnmaskError` for one of another family, or without code.
    """
    folder = resolve_folder(code_from, weights=False)
    published = read_json(folder / "config.json")
    theirs, ours = find_family(published, str(folder / "config.json")).name, find_family(model.config).name
    if theirs != ours:
        raise UnmaskError(f"{folder}: has the code of {theirs}, and the model is of {ours}")
    files = sorted(folder.glob("*.py"))
    if not files or not isinstance(published.get("auto_map"), dict):
        raise UnmaskError(f"{folder}: has no code of its own (Python files, and auto_map in config.json)")
    model.config = {**model.config, "auto_map": published["auto_map"]}
    with tempfile.TemporaryDirectory() as scratch:
        if model.source_folder is not None and model.source_folder.is_dir():
            carry_files(model.source_folder, Path(scratch))
        for file in files:
            shutil.copyfile(file, Path(scratch) / file.name)
        yield Path(scratch)

"""What a run begins with, and has to find again when it goes on: the folders of its models, its data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from unmask.config import RlRecipe, SftRecipe
from unmask.data.row_source import RowSource
from unmask.data.sources import Source
from unmask.data.traces import TraceSource
from unmask.errors import UnmaskError
from unmask.files import new_folder, read_json, sha256, write_text
from unmask.launch.machine import find_model_folder
from unmask.models import Decoder
from unmask.models.checkpoint import save_model
from unmask.models.hub import resolve_folder

ORIGINS = "origins.json"  # in a run folder: the folders that the models' paths meant when it began, and hashes of its data
LAUNCHERS = ".launchers.json"  # in a run folder: who started the ranks that were last in it
BASE = "base"  # in a run folder: the preset's model that adapters are trained for


def is_begun_by(folder: Path, launchers: list[str]) -> bool:
    """Whether the run in this folder was begun, or resumed, by one of these, which then has started its ranks again."""
    try:
        return not set(json.loads((folder / LAUNCHERS).read_text(encoding="utf-8"))).isdisjoint(filter(None, launchers))
    except (OSError, ValueError, TypeError):  # not there, or not what was written
        return False


def pin_folders(recipe: SftRecipe | RlRecipe, folder: Path, resume: bool) -> tuple[SftRecipe | RlRecipe, dict[str, str]]:
    """The recipe with the folders that its models' paths mean now, and these folders by section. A resumed run keeps those
    that it began with: the newest checkpoint of a run, or a branch on the hub, may be another one by then.
    """
    file = folder / ORIGINS
    origins: dict[str, str] = read_json(file) if resume and file.is_file() else {}
    pinned: dict[str, Any] = {}
    for name in ("model", "value", "reference"):
        section = getattr(recipe, name, None)
        if section is None or not section.path:
            continue
        if name not in origins:
            origins[name] = str(find_model_folder(section.path, getattr(section, "revision", "")).resolve())
        elif not Path(origins[name]).is_dir():
            raise UnmaskError(f"{file}: {name} was {origins[name]}, which is gone; put it back, or name a copy of it there")
        pinned[name] = section.model_copy(update={"path": origins[name], **({"revision": ""} if name == "model" else {})})
    model = recipe.model
    if model.tokenizer:
        if "tokenizer" not in origins:
            tokenizer = resolve_folder(model.tokenizer, model.revision or None, weights=False)
            origins["tokenizer"] = str(tokenizer.resolve())
        pinned["model"] = model.model_copy(update={"tokenizer": origins["tokenizer"], "revision": ""})
    return recipe.model_copy(update=pinned), origins


def pin_data(source: Source, origins: dict[str, str], folder: Path) -> None:
    """Raises `UnmaskError` if the training data is not what it was when the run began: a step would train on other examples
    than it says. Data that is made up as it is asked for follows from the recipe."""
    if not isinstance(source, RowSource | TraceSource):
        return
    found = " ".join(map(sha256, source.files))
    if origins.setdefault("data", found) != found:
        raise UnmaskError(
            f"{folder / ORIGINS}: the training data (source.options) has changed since this run began; put it back, or use "
            "another run.dir"
        )


def adapter_base(recipe: SftRecipe | RlRecipe, pinned: SftRecipe | RlRecipe, model: Decoder, scratch: Path) -> str:
    """Where checkpoints with adapters say that their model is; a preset's is written, to be kept in the run folder."""
    if not recipe.lora.rank:
        return ""
    if recipe.model.path:
        is_local = Path(recipe.model.path).exists() or recipe.model.revision
        return pinned.model.path if is_local else recipe.model.path
    save_model(model, scratch / BASE, tokenizer_from=scratch)
    return f"../../{BASE}"


def keep_beginning(folder: Path, origins: dict[str, str], launchers: list[str], scratch: Path, resume: bool) -> None:
    """What the run has to find again when it goes on: the folders of its models, the model of its adapters, who began it. What
    a run that ended before its first step left there is replaced."""
    write_text(folder / LAUNCHERS, json.dumps(launchers) + "\n")
    write_text(folder / ORIGINS, json.dumps(origins, indent=2) + "\n")
    if (scratch / BASE).exists() and not (resume and (folder / BASE).exists()):
        with new_folder(folder / BASE) as temporary:
            shutil.copytree(scratch / BASE, temporary, dirs_exist_ok=True)

"""Where model folders come from: a local path, or "owner/name" through the hub's cache. And the files that are carried."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from unmask.errors import UnmaskError

# Copied from the folder a model was loaded from into the folder it is saved to. The Python files are never imported here:
# they come along because other tools cannot load some families without them.
CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    "tokenizer.model", "chat_template.jinja", "chat_template.json", "generation_config.json", "*.py",
)  # fmt: skip
_MODEL_FILES = ("config.json", "model.safetensors", "model.safetensors.index.json", *(p for p in CARRIED if p != "*.py"))
_WEIGHTS = ("model*.safetensors", "adapter_model.safetensors")
_FETCHED = ("*.json", "*.txt", "*.jinja", "tokenizer.model", "*.py")


def resolve_folder(path_or_hub_name: str | Path, revision: str | None = None, *, weights: bool = True) -> Path:
    """A local folder as it is; "owner/name" through the hub's cache, at a branch, tag or commit.

    weights: False leaves the tensors where they are. Raises `UnmaskError` saying what was looked for and why not found.
    """
    folder, name = Path(path_or_hub_name), str(path_or_hub_name)
    if folder.is_dir():
        if revision is not None:
            raise UnmaskError(f"{name}: is a local folder; a revision ({revision!r}) belongs to a name on the hub")
        return folder
    if folder.exists():
        raise UnmaskError(f"{name}: is a file; a model is a folder with config.json and model.safetensors")
    if not is_hub_name(name):
        raise UnmaskError(f"{name}: no such folder (and not a hub name of the form owner/name)")
    snapshot = fetch_snapshot(name, revision, [*_FETCHED, *_WEIGHTS] if weights else [*_FETCHED], "folder")
    if weights and not any(file for pattern in _WEIGHTS for file in snapshot.glob(pattern)):
        raise UnmaskError(
            f"{name}: no safetensors here: the repository has none (pickles are not read), or they were not fetched yet and "
            f"there is no connection ({snapshot})"
        )
    return snapshot


def is_hub_name(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def fetch_snapshot(name: str, revision: str | None, patterns: list[str], what: str, repo_type: str = "model") -> Path:
    """The folder in the hub's cache with those files of a repository that match. Raises `UnmaskError`.

    what: was looked for under this name before, for the message.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, repo_type=repo_type))
    except Exception as error:  # hub clients raise many kinds; all mean "could not be had"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnmaskError(f"{name}: no such local {what}, and the hub did not deliver it: {reason}") from None


def is_model_file(name: str) -> bool:
    """Whether a file belongs to a model (and is replaced by another's); Python files may be anybody's."""
    return name in _MODEL_FILES or re.fullmatch(r"model-\d+-of-\d+\.safetensors", name) is not None


def carry_files(source: Path, target: Path) -> None:
    """Copies the tokenizer and the other small files of a model folder into a new one."""
    for file in carried_files(source):
        shutil.copyfile(file, target / file.name)


def carried_files(source: Path) -> list[Path]:
    """The tokenizer and the other small files of a model folder."""
    return [file for pattern in CARRIED for file in source.glob(pattern) if file.is_file()]

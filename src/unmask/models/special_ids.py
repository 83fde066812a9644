"""Mask, pad and end tokens: from config.json, from the tokenizer's files, and an error where the two contradict.

The tokenizer's files are read as JSON; no tokenizer is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unmask.errors import UnmaskError
from unmask.files import read_json
from unmask.models.config_keys import as_token_ids
from unmask.models.spec import ModelFamily


def fill_special_ids(config: dict[str, Any], folder: Path, family: ModelFamily) -> dict[str, Any]:
    """The config with `mask_token_id`, `pad_token_id` and `eos_token_id` complete.

    - mask: the config's, else the token the tokenizer declares, else the family's mask token by its text.
    - pad: the config's, else the tokenizer's.
    - end tokens: all that config.json, generation_config.json and the tokenizer name, and the token that ends a turn.
      They may differ: a base model ends documents, a chat model turns.

    Raises `UnmaskError` when config and tokenizer name different mask or pad tokens, or nobody names a mask token.
    """
    tokens = _TokenizerFiles(folder)
    filled = dict(config)
    for key in ("mask_token", "pad_token"):
        own, theirs = config.get(f"{key}_id"), tokens.declared(key)
        if theirs is None and key == "mask_token":
            theirs = tokens.find(family.mask_token)
        if own is None:
            own = theirs
        elif theirs not in (None, own) and isinstance(own, int):
            text = tokens.text(key) or family.mask_token
            raise UnmaskError(
                f"{folder / 'config.json'}: {key}_id {own} contradicts the tokenizer, whose {key} {text!r} is {theirs}"
            )
        filled[f"{key}_id"] = own
    if filled["mask_token_id"] is None:
        raise UnmaskError(
            f"{folder / 'config.json'}: key 'mask_token_id' is missing, and no tokenizer file here declares a mask token "
            f"or has {family.mask_token!r}"
        )
    generation = folder / "generation_config.json"
    end_ids: list[int | None] = []
    for file, ids in ((folder / "config.json", config), (generation, read_json(generation) if generation.exists() else {})):
        try:
            end_ids += as_token_ids(ids["eos_token_id"]) if ids.get("eos_token_id") is not None else ()
        except ValueError as error:
            raise UnmaskError(f"{file}: eos_token_id: {error}") from None
    end_ids += [tokens.declared("eos_token"), tokens.find(family.turn_end_token)]
    if unique := list(dict.fromkeys(i for i in end_ids if i is not None)):
        filled["eos_token_id"] = unique
    return filled


class _TokenizerFiles:
    """What a folder's tokenizer says, as far as it is JSON. Large files are read only when smaller ones do not tell."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._config = self._read("tokenizer_config.json")
        self._map = self._read("special_tokens_map.json")
        self._ids: dict[str, int] = {}
        for token_id, entry in _table(self._config.get("added_tokens_decoder")).items():
            if isinstance(entry, dict) and str(token_id).isdecimal():
                self._ids[str(entry.get("content"))] = int(token_id)
        self._ids.update({text: i for text, i in self._read("added_tokens.json").items() if isinstance(i, int)})
        self._has_all = False

    def _read(self, name: str) -> dict[str, Any]:
        return read_json(self._folder / name) if (self._folder / name).exists() else {}

    def text(self, key: str) -> str | None:
        """The text of a declared token ("mask_token", "pad_token", "eos_token")."""
        for table in (self._config, self._map):
            entry = table.get(key)
            text = entry.get("content") if isinstance(entry, dict) else entry
            if isinstance(text, str):
                return text
        return None

    def declared(self, key: str) -> int | None:
        text = self.text(key)
        return None if text is None else self.find(text)

    def find(self, text: str) -> int | None:
        """The id of a token, or None."""
        if text not in self._ids and not self._has_all:
            self._has_all = True
            full = self._read("tokenizer.json")
            vocabulary = _table(full.get("model")).get("vocab")
            pieces = dict(vocabulary) if isinstance(vocabulary, dict) else {}
            pieces.update(self._read("vocab.json"))
            added = full.get("added_tokens")
            for entry in added if isinstance(added, list) else []:
                if isinstance(entry, dict) and isinstance(entry.get("id"), int):
                    pieces[entry.get("content")] = entry["id"]
            self._ids = {**{k: i for k, i in pieces.items() if isinstance(i, int)}, **self._ids}
        return self._ids.get(text)


def _table(value: Any) -> dict:
    return value if isinstance(value, dict) else {}

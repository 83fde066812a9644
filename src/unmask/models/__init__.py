"""Models: one decoder, a registry of families, and checkpoints in the hub's format."""

from __future__ import annotations

import copy
from typing import Any

from unmask.errors import UnmaskError
from unmask.models.decoder import Decoder, ValueModel
from unmask.models.dream import Dream
from unmask.models.llada import LLaDA
from unmask.models.mmada import MMaDA
from unmask.models.sdar import SDAR, SDARMoE
from unmask.models.spec import ModelFamily, ModelSpec

FAMILIES: dict[str, ModelFamily] = {family.name: family for family in (SDAR(), SDARMoE(), Dream(), LLaDA(), MMaDA())}


def find_family(config: dict[str, Any], where: str = "config.json") -> ModelFamily:
    """The family a parsed config.json belongs to, by `model_type`, else by `architectures`. Raises `UnmaskError`."""
    model_type, architectures = config.get("model_type"), config.get("architectures")
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
        if (
            model_type is None
            and isinstance(architectures, list)
            and any(name in architectures for name in family.architectures)
        ):
            return family
    known = ", ".join(t for family in FAMILIES.values() for t in family.model_types)
    raise UnmaskError(f"{where}: model_type {config.get('model_type')!r} is unknown; known: {known}")


def preset_config(preset: str) -> dict[str, Any]:
    """The config of a randomly initialised model, by "family/size" (for example "sdar/tiny"). Raises `UnmaskError`."""
    known = {f"{name}/{size}": config for name, family in FAMILIES.items() for size, config in family.presets.items()}
    if preset not in known:
        raise UnmaskError(f"unknown model preset {preset!r}; known: {', '.join(known)}")
    return copy.deepcopy(known[preset])


__all__ = ["FAMILIES", "Decoder", "ModelFamily", "ModelSpec", "ValueModel", "find_family", "preset_config"]

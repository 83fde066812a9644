"""Finding a registered part by name and checking its options. A part is a class with an `Options` model inside.

A registry may have a part under `OWN_FUNCTION`: it stands for all names of the form `path/to/file.py:function`, and is called
with the name, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from unmask.config.load import Model, check
from unmask.config.sections import Plugin
from unmask.errors import UnmaskError

OWN_FUNCTION = "FILE.py:FUNCTION"


def plugin_options(registry: Mapping[str, Any], plugin: Plugin, what: str) -> BaseModel:
    """The checked options of the part that `plugin` names; `what` is the recipe's word for it (source, reward, ...).

    Raises `UnmaskError` listing the known names, or naming the option that is wrong.
    """
    return check(registry[_key(registry, plugin, what)].Options, plugin.options, f"{what}.options")


def fill_plugins(recipe: Model, registries: Mapping[str, Mapping[str, Any]]) -> Model:
    """The recipe with the checked options, defaults included, of its parts; `registries` by the recipe's word for them.

    Raises `UnmaskError`.
    """
    parts = {}
    for what, registry in registries.items():
        plugin: Plugin = getattr(recipe, what)
        options = plugin_options(registry, plugin, what).model_dump(mode="json", exclude_none=True)
        parts[what] = Plugin(name=plugin.name, options=options)
    return recipe.model_copy(update=parts)


def make_plugin(registry: Mapping[str, Any], plugin: Plugin, what: str, *arguments: Any) -> Any:
    """An instance of the part: its class called with the checked options and `arguments`. Raises `UnmaskError`."""
    options = plugin_options(registry, plugin, what)
    key = _key(registry, plugin, what)
    return registry[key](options, *arguments, *((plugin.name,) if key == OWN_FUNCTION else ()))


def _key(registry: Mapping[str, Any], plugin: Plugin, what: str) -> str:
    """The name that the part is registered under."""
    file, _, function = plugin.name.rpartition(":")
    if OWN_FUNCTION in registry and file.endswith(".py") and function.isidentifier():
        return OWN_FUNCTION
    if plugin.name not in registry:
        raise UnmaskError(f"unknown {what} {plugin.name!r}; known: {', '.join(registry)}")
    return plugin.name

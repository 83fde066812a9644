"""Typed recipes in TOML. Imports no torch."""

from unmask.config.evaluation import EvalRecipe, GenerateRecipe
from unmask.config.load import check, load_recipe, parse_settings, read_toml, recipe_of_run, to_toml
from unmask.config.plugins import OWN_FUNCTION, fill_plugins, make_plugin, plugin_options
from unmask.config.schema import RlRecipe, SftRecipe
from unmask.config.sections import EngineLimits, EvalConfig, LogConfig, Plugin, RunConfig
from unmask.config.serving import ServerConfig, ServeRecipe

__all__ = [
    "OWN_FUNCTION", "EngineLimits", "EvalConfig", "EvalRecipe", "GenerateRecipe", "LogConfig", "Plugin", "RlRecipe",
    "RunConfig", "ServeRecipe", "ServerConfig", "SftRecipe", "check", "fill_plugins", "load_recipe", "make_plugin",
    "parse_settings", "plugin_options", "read_toml", "recipe_of_run", "to_toml",
]  # fmt: skip

"""Typed recipes in TOML. Imports no torch."""

from unmask.config.load import check, load_recipe, to_toml
from unmask.config.schema import EvalConfig, Plugin, RlRecipe, RunConfig, SftRecipe

__all__ = ["EvalConfig", "Plugin", "RlRecipe", "RunConfig", "SftRecipe", "check", "load_recipe", "to_toml"]

"""Recipes: a mix of adapters as JSON, as a prompt's tags, in a PNG, and back onto a pipeline."""

from __future__ import annotations

from diffadapt.recipe.lset import read_lset
from diffadapt.recipe.part import Part
from diffadapt.recipe.png import read_png, save_png
from diffadapt.recipe.prompt import Mention, parse_prompt, write_prompt
from diffadapt.recipe.recipe import Merge, Recipe

__all__ = ["Mention", "Merge", "Part", "Recipe", "parse_prompt", "read_lset", "read_png", "save_png", "write_prompt"]

"""What adapters are and do to one another, without a picture: the library's analyses, for what a mix names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import diffadapt
from diffadapt.adapter import Adapter
from diffadapt.combine.comparing import Comparison
from diffadapt.combine.resizing import spectrum
from diffadapt.combine.walking import block_of, label
from diffadapt.errors import RecipeError
from diffadapt.explain.effect import Effect, effect
from diffadapt.recipe import Recipe

from .mix import Row
from .shelf import Shelf
from .studio import Studio

LAYERS = 12
"""How many layers' spectra are drawn: those whose change is the largest."""


@lru_cache(maxsize=32)
def _read(path: Path, modified: int) -> Adapter:
    return diffadapt.read_adapter(path)


def adapter_of(shelf: Shelf, card_id: str) -> Adapter:
    """The adapter of a card, its tensors mapped. Raises SourceError and what reading raises."""
    path, card = shelf.path(card_id), shelf.card(card_id)
    return replace(_read(path, path.stat().st_mtime_ns), name=card.name)


def _of_mix(shelf: Shelf, rows: Sequence[Row]) -> list[tuple[Row, Adapter]]:
    """The adapters that are switched on. Raises RecipeError where there are none."""
    found = [(row, adapter_of(shelf, row.id)) for row in rows if row.on and row.id]
    if not found:
        raise RecipeError("No adapter is switched on. Add one from the library first.")
    return [(row, replace(adapter, name=row.name)) for row, adapter in found]


def comparison(studio: Studio, shelf: Shelf, rows: Sequence[Row]) -> Comparison:
    """Where the adapters of a mix act, how alike they are, and what will clash, at the weights of the rows."""
    mix = _of_mix(shelf, rows)
    with studio.lock:
        return diffadapt.compare({adapter: row.weight for row, adapter in mix}, base=studio.pipeline)


def balanced(studio: Studio, shelf: Shelf, rows: Sequence[Row], rule: str = "equal_effect") -> list[Row]:
    """The rows at weights at which each has an equal share; signs, and the sum of the sizes, stay."""
    mix = _of_mix(shelf, rows)
    total = sum(abs(row.weight) for row, _ in mix) or 1.0
    with studio.lock:
        weights = diffadapt.balance([adapter for _, adapter in mix], rule, total, base=studio.pipeline)
    found = {row.name: round(weights[row.name], 4) for row, _ in mix}
    return [
        replace(row, weight=found[row.name] * (-1 if row.weight < 0 else 1), te=None) if row.name in found else row
        for row in rows
    ]


def spectra(studio: Studio, shelf: Shelf, card_id: str) -> list[Mapping[str, Any]]:
    """The singular values of the layers that an adapter changes most: layer, block, values from the largest down."""
    with studio.lock:
        found = spectrum(adapter_of(shelf, card_id), base=studio.pipeline)
    largest = sorted(found.items(), key=lambda item: -float(item[1].square().sum()))[:LAYERS]
    return [
        {"layer": label(name), "block": block_of(name.module), "values": values[:64].tolist()}
        for name, values in largest
        if len(values)
    ]


def effect_of(studio: Studio, recipe: Recipe, name: str) -> Effect:
    """What one adapter of a mix is meant to do and does, by block. Raises RecipeError where it is not in
    the mix."""
    if all(part.name != name for part in recipe.adapters):
        raise RecipeError(f"{name!r} is not switched on in the mix.")
    with studio.mixed(recipe) as names:
        return effect(studio.pipeline, names[name])

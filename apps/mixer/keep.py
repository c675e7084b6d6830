"""What leaves the mixer and comes back: adapters made of a mix, recipes, pictures that know theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffadapt
from diffadapt.adapter import Adapter
from diffadapt.converters.plan import DTYPES
from diffadapt.dialects import dialect_named
from diffadapt.errors import RecipeError, SourceError
from diffadapt.io.plain_json import clip
from diffadapt.recipe import Part, Recipe, read_lset, read_png

from .insight import adapter_of
from .shelf import Shelf
from .studio import Studio

UPLOAD_BYTES = 2 << 30
_PNG = b"\x89PNG"


def save_mix(
    studio: Studio, shelf: Shelf, recipe: Recipe, folder: Path, dialect: str, rank: int | None, dtype: str
) -> Path:
    """Make one adapter of a mix, and write it in a dialect. Block weights are kept, and are no longer dials.

    rank: of the result; None: exact, where the recipe's method is. Raises RecipeError for an empty mix, CombineError
    for what no single adapter can do (steps), DialectError for what the dialect cannot hold.
    """
    dialect_named(dialect)
    if dtype not in DTYPES:
        raise RecipeError(f"The type {clip(dtype, 40)} is none of {', '.join(DTYPES)}.")
    known = shelf.resolve(recipe)
    if not known.adapters:
        raise RecipeError("No adapter is switched on, so there is nothing to save.")
    options: dict[str, Any] = dict(recipe.options)
    held = options.pop("rank", None)
    wanted = rank or held
    with studio.lock:
        strengths = known.strengths(studio.pipeline.adapters)
        pairs = [(_adapter(shelf, part), strengths[part.name]) for part in known.adapters]
        mix = diffadapt.combine(pairs, recipe.method, rank=wanted, base=studio.pipeline, dtype=DTYPES[dtype], **options)
    return mix.save(folder / f"mix-{dialect}.safetensors", dialect=dialect)


def _adapter(shelf: Shelf, part: Part) -> Adapter:
    card = shelf.holding(part)
    if card is None:  # `resolve` has found it; the file has gone since
        raise SourceError(f"{part.label}: its file is gone. Scan the library again.")
    adapter: Adapter = adapter_of(shelf, card.id)
    return adapter


def read_recipe(path: Path) -> Recipe:
    """The recipe of a picture, a recipe's JSON, or a preset (.lset). Raises RecipeError for anything else."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise RecipeError(f"{path.name}: cannot be read ({error.strerror}).") from error
    if start == _PNG:
        found = read_png(path)
        if found is None:
            raise RecipeError(f"{path.name}: the picture says nothing of a mix. Expected one that the mixer saved.")
        return found
    return read_lset(path) if path.suffix.lower() == ".lset" else Recipe.load(path)

"""X/Y grids: one recipe, changed along two axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffadapt.errors import RecipeError
from diffadapt.io.plain_json import clip
from diffadapt.recipe import Part, Recipe
from diffadapt.recipe.prompt import parse_tag
from diffadapt.recipe.recipe import SUM

from .studio import Asked, Drawn, Request, Step, Studio

if TYPE_CHECKING:
    from PIL.Image import Image

CELLS = 64
NONE = "none"
Change = Callable[[Recipe, str, str], Recipe]


@dataclass(frozen=True)
class Axis:
    """What changes along one side. kind: of `KINDS`. values: as text. of: the adapter that it is about, where it is."""

    kind: str = NONE
    values: tuple[str, ...] = ("",)
    of: str = ""

    @classmethod
    def parse(cls, kind: str, values: str, of: str = "") -> Axis:
        """An axis of what somebody wrote: values apart by commas, or by semicolons where they hold commas.

        Raises RecipeError for an unknown kind and for no values.
        """
        if kind not in KINDS:
            raise RecipeError(f"No axis is called {clip(kind, 60)}; there are {', '.join(KINDS)}.")
        if kind == NONE:
            return cls()
        found = tuple(text.strip() for text in values.split(";" if ";" in values else ",") if text.strip())
        if not found:
            raise RecipeError(f"The axis {kind!r} has no values. Write some, apart by commas.")
        return cls(kind, found, of)

    def label(self, value: str) -> str:
        """What stands beside a row or above a column."""
        if self.kind == NONE:
            return ""
        return f"{self.of} {value}" if self.of else f"{self.kind} {value}"

    def change(self, recipe: Recipe, value: str) -> Recipe:
        """The recipe at one of the values. Raises RecipeError for a value that it cannot have."""
        return KINDS[self.kind](recipe, self.of, value)


@dataclass(frozen=True)
class Cell:
    """A finished picture of a grid, by column and row."""

    x: int
    y: int
    drawn: Drawn


def draw_grid(studio: Studio, request: Request, x: Axis, y: Axis, stop: Asked) -> Iterator[Step | Cell]:
    """Every picture of a grid, row by row, with the steps between. Raises RecipeError before anything is drawn where a
    value cannot be used, or where there would be more than 64 pictures."""
    count = len(x.values) * len(y.values)
    if count > CELLS:
        raise RecipeError(f"The grid has {count} pictures; expected at most {CELLS}.")
    cells = [
        (i, j, replace(request, recipe=y.change(x.change(request.recipe, across), down)))
        for j, down in enumerate(y.values)
        for i, across in enumerate(x.values)
    ]
    for _, _, one in cells:  # what is no block of this pipeline is found here
        one.recipe.strengths(studio.pipeline.adapters)
    for i, j, one in cells:
        for event in studio.stream(one, stop):
            yield Cell(i, j, event) if isinstance(event, Drawn) else event


def sheet(cells: Sequence[Cell], x: Axis, y: Axis) -> Image:
    """The pictures in their places, with the values beside them."""
    from PIL import Image, ImageDraw, ImageFont

    wide = max(cell.drawn.picture.width for cell in cells)
    high = max(cell.drawn.picture.height for cell in cells)
    scale = max(1, round(128 / max(wide, high)))
    wide, high = wide * scale, high * scale
    font, gap = ImageFont.load_default(14), 6
    left = max((int(font.getlength(y.label(value))) for value in y.values), default=0)
    left, top = left + 2 * gap if left else gap, 24 if x.label(x.values[0]) else gap
    size = (left + len(x.values) * (wide + gap), top + len(y.values) * (high + gap))
    page = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(page)
    for i, value in enumerate(x.values):
        pen.text((left + i * (wide + gap) + wide // 2, top // 2), x.label(value), "black", font, anchor="mm")
    for j, value in enumerate(y.values):
        pen.text((left - gap, top + j * (high + gap) + high // 2), y.label(value), "black", font, anchor="rm")
    for cell in cells:
        picture = cell.drawn.picture.convert("RGB").resize((wide, high), Image.Resampling.NEAREST)
        page.paste(picture, (left + cell.x * (wide + gap), top + cell.y * (high + gap)))
    return page


# -- what an axis may change -----------------------------------------------------------------------------------


def _number(value: str, what: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise RecipeError(f"The {what} {clip(value, 40)} on an axis is no number.") from None


def _whole(value: str, what: str) -> int:
    try:
        return int(value)  # a seed may have more digits than a float
    except ValueError:
        found = _number(value, what)
    if not found.is_integer():
        raise RecipeError(f"The {what} {clip(value, 40)} on an axis is no whole number.")
    return int(found)


def _with_part(recipe: Recipe, name: str, change: Callable[[Part], Part]) -> Recipe:
    if all(part.name != name for part in recipe.adapters):
        raise RecipeError(f"{clip(name, 60)} is not switched on in the mix, so no axis can change it.")
    return replace(recipe, adapters=tuple(change(part) if part.name == name else part for part in recipe.adapters))


def _weight(recipe: Recipe, of: str, value: str) -> Recipe:
    return _with_part(recipe, of, lambda part: part.with_weight(_number(value, "weight")))


def _blocks(recipe: Recipe, of: str, value: str) -> Recipe:
    if ":" in value or ">" in value:
        raise RecipeError(f"The block weights {clip(value, 60)} on an axis hold ':' or '>', which no tag can.")

    def change(part: Part) -> Part:
        said = parse_tag(f"<lora:x:1:lbw={value}>").lbw
        return replace(part, tag=str(replace(part.mention, lbw=said, at=None)), strength=None, weight=1.0)

    return _with_part(recipe, of, change)


def _adapter(recipe: Recipe, of: str, value: str) -> Recipe:
    if value == NONE:
        return replace(recipe, adapters=())
    _with_part(recipe, value, lambda part: part)
    return replace(recipe, adapters=tuple(part for part in recipe.adapters if part.name == value))


def _method(recipe: Recipe, of: str, value: str) -> Recipe:
    from diffadapt.combine import METHODS

    if value not in METHODS:
        raise RecipeError(f"No method is called {clip(value, 60)}; there are {', '.join(METHODS)}.")
    return replace(recipe, method=value, options={} if value == SUM else recipe.options)


def _setting(name: str, read: Callable[[str, str], Any]) -> Change:
    return lambda recipe, of, value: replace(recipe, **{name: read(value, name)})


KINDS: Mapping[str, Change] = {
    NONE: lambda recipe, of, value: recipe,
    "weight": _weight,
    "blocks": _blocks,
    "adapter": _adapter,
    "method": _method,
    "seed": _setting("seed", _whole),
    "steps": _setting("steps", _whole),
    "guidance": _setting("guidance", _number),
    "prompt": _setting("prompt", lambda value, name: value),
}
"""What may change along an axis: a function of the recipe, the adapter and the value."""

OF_AN_ADAPTER = ("weight", "blocks")
"""Axes that are about one adapter."""

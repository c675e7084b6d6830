"""Grids: every cell is the picture of its own recipe, in its place; what cannot be drawn is refused beforehand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from diffadapt.apps.mixer import grid
from diffadapt.apps.mixer.grid import Axis, Cell
from diffadapt.apps.mixer.studio import Cancelled, Drawn, Request, Step, Studio
from diffadapt.errors import RecipeError
from diffadapt.recipe import Recipe
from tests.apps.conftest import Drawing, row

ROWS = [row("glow", 0.6), row("outline", 0.5, te=0.25)]


def cells_of(draw: Drawing, recipe: Recipe, x: Axis, y: Axis) -> list[Cell]:
    found = grid.draw_grid(draw.studio, Request(recipe), x, y, lambda: False)
    return [event for event in found if isinstance(event, Cell)]


@pytest.mark.parametrize(
    ("kind", "values", "of", "found"),
    [
        ("weight", "0, 0.5 ,1", "glow", ("0", "0.5", "1")), ("blocks", "FIRST;1,0.5", "glow", ("FIRST", "1,0.5")),
        ("prompt", "a red, round thing; a star", "", ("a red, round thing", "a star")),
        ("seed", "1,2,", "", ("1", "2")), ("none", "whatever", "glow", ("",)),
    ],
)  # fmt: skip
def test_an_axis_of_what_somebody_wrote(kind: str, values: str, of: str, found: tuple[str, ...]) -> None:
    assert Axis.parse(kind, values, of).values == found


@pytest.mark.parametrize(
    ("kind", "values", "word"),
    [("nonsense", "1", "No axis is called"), ("weight", " , ", "no values"), ("seed", "", "no values")],
)
def test_an_axis_that_is_none(kind: str, values: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        Axis.parse(kind, values)


CHANGES: list[tuple[str, str, str, Any]] = [
    ("weight", "0.25", "glow", lambda r: r.adapters[0].main_weight == 0.25),
    ("weight", "-1", "outline", lambda r: (r.adapters[1].main_weight, r.adapters[1].mention.te) == (-1.0, -0.5)),
    ("blocks", "FIRST", "glow", lambda r: r.adapters[0].mention.lbw == "FIRST"),
    ("blocks", "1,0,0,0,1,1,1,1", "outline", lambda r: r.adapters[1].mention.lbw == (1, 0, 0, 0, 1, 1, 1, 1)),
    ("adapter", "outline", "", lambda r: [part.name for part in r.adapters] == ["outline"]),
    ("adapter", "none", "", lambda r: r.adapters == ()),
    ("method", "ties", "", lambda r: r.method == "ties"),
    ("seed", "-7", "", lambda r: r.seed == -7),
    ("seed", "18446744073709551615", "", lambda r: r.seed == 18446744073709551615),
    ("steps", "5", "", lambda r: r.steps == 5),
    ("guidance", "2.5", "", lambda r: r.guidance == 2.5),
    ("prompt", "a star", "", lambda r: r.prompt == "a star"),
]


@pytest.mark.parametrize(("kind", "value", "of", "holds"), CHANGES, ids=[f"{k}-{v}" for k, v, *_ in CHANGES])
def test_what_an_axis_changes(draw: Drawing, kind: str, value: str, of: str, holds: Any) -> None:
    recipe = draw.recipe(ROWS)
    axis = Axis.parse(kind, f"{value};", of)
    assert axis.values == (value,)
    changed = axis.change(recipe, value)
    assert holds(changed)
    assert not holds(recipe)


@pytest.mark.parametrize(
    ("kind", "value", "of", "word"),
    [
        ("weight", "strong", "glow", "is no number"), ("weight", "nan", "glow", "finite|number"),
        ("weight", "1", "dusk", "not switched on"), ("weight", "1", "", "not switched on"),
        ("blocks", "FIRST:0.5", "glow", "':'"), ("blocks", "a>b", "glow", "'>'"), ("blocks", "NOPE", "glow", "NOPE"),
        ("blocks", "1,2,3", "glow", "1,2,3|1.0, 2.0, 3.0"), ("adapter", "dusk", "", "not switched on"),
        ("method", "nonsense", "", "No method"), ("seed", "1.5", "", "no whole"), ("seed", "inf", "", "no whole"),
        ("seed", "nan", "", "no whole"), ("seed", "1e400", "", "no whole"), ("steps", "0", "", "from 1"),
        ("steps", "1e30", "", "from 1"), ("guidance", "nan", "", "finite"), ("guidance", "x", "", "is no number"),
    ],
)  # fmt: skip
def test_what_an_axis_cannot_have(draw: Drawing, kind: str, value: str, of: str, word: str) -> None:
    """Also beside values that it can: nothing is drawn then."""
    good = {"weight": "1", "blocks": "ALL", "adapter": "none", "method": "sum", "steps": "2"}.get(kind, "1")
    x, drawn = Axis(kind, (good, value), of), []
    events = grid.draw_grid(draw.studio, Request(draw.recipe(ROWS)), x, Axis(), lambda: False)
    with pytest.raises(RecipeError, match=word) as caught:
        drawn.extend(events)
    assert drawn == []
    assert len(str(caught.value)) < 600


def test_a_grid_of_too_many_pictures(draw: Drawing) -> None:
    x, y = Axis("seed", tuple(map(str, range(13)))), Axis("steps", tuple(map(str, range(1, 6))))
    with pytest.raises(RecipeError, match="65 pictures; expected at most 64"):
        next(grid.draw_grid(draw.studio, Request(draw.recipe(ROWS)), x, y, lambda: False))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (Axis("weight", ("0", "-1"), "glow"), Axis("seed", ("3", "4"))),
        (Axis("guidance", ("2", "4")), Axis("adapter", ("glow", "outline", "none"))),
        (Axis("blocks", ("FIRST", "LAST"), "outline"), Axis("weight", ("0", "1"), "outline")),
        (Axis("method", ("sum", "ties")), Axis()),
    ],
    ids=["weight-seed", "guidance-adapter", "blocks-weight", "method"],
)
def test_every_cell_is_the_picture_of_its_own_recipe(draw: Drawing, x: Axis, y: Axis) -> None:
    recipe = draw.recipe([ROWS[0], replace(ROWS[1], te=None)])
    cells = cells_of(draw, recipe, x, y)
    assert [(cell.x, cell.y) for cell in cells] == [(i, j) for j in range(len(y.values)) for i in range(len(x.values))]
    for cell in cells:
        own = y.change(x.change(recipe, x.values[cell.x]), y.values[cell.y])
        assert cell.drawn.picture.tobytes() == draw.of(own).picture.tobytes()
        assert cell.drawn.recipe == draw.studio.written_down(own)
    assert len({cell.drawn.picture.tobytes() for cell in cells}) > 1


def test_the_sheet_has_every_picture_in_its_place(draw: Drawing) -> None:
    x, y = Axis("weight", ("0", "1", "2"), "glow"), Axis("seed", ("3", "4"))
    cells = cells_of(draw, draw.recipe(ROWS), x, y)
    page = grid.sheet(cells, x, y)
    side, gap, top = 128, 6, 24  # pictures of 64 pixels twice as large, for the words to be read
    left = page.width - len(x.values) * (side + gap)
    assert left > 40
    assert page.height == top + len(y.values) * (side + gap)
    for cell in cells:
        corner = left + cell.x * (side + gap), top + cell.y * (side + gap)
        shown = page.crop((*corner, corner[0] + side, corner[1] + side)).resize((64, 64), Image.Resampling.NEAREST)
        assert shown.tobytes() == cell.drawn.picture.convert("RGB").tobytes()
    words = (
        page.crop((left, 0, page.width, top)).convert("L").getextrema(),
        page.crop((0, top, left - gap, page.height)),
    )
    assert words[0][0] < 100
    assert words[1].convert("L").getextrema()[0] < 100


def test_a_sheet_of_one_row_has_no_words_beside_it(draw: Drawing) -> None:
    x = Axis("seed", ("3",))
    (cell,) = cells_of(draw, draw.recipe([]), x, Axis())
    assert grid.sheet([cell], x, Axis()).size == (6 + 134, 24 + 134)
    assert grid.sheet([cell], Axis(), Axis()).size == (6 + 134, 6 + 134)
    large = Image.new("RGB", (512, 256))
    wide = grid.sheet([Cell(0, 0, Drawn(large, Recipe(), 0.0, 0.0))], Axis(), Axis())
    assert wide.size == (6 + 518, 6 + 262)


def test_steps_are_told_and_a_grid_can_be_stopped(draw: Drawing, studio: Studio) -> None:
    x, seen = Axis("seed", ("1", "2")), []
    for event in grid.draw_grid(studio, Request(draw.recipe(ROWS)), x, Axis(), lambda: False):
        seen.append(type(event))
    assert seen == [Step, Step, Cell] * 2
    found: list[Any] = []
    events = grid.draw_grid(studio, Request(draw.recipe(ROWS)), x, Axis(), lambda: len(found) > 3)
    with pytest.raises(Cancelled):
        found.extend(events)
    assert sum(isinstance(event, Cell) for event in found) == 1
    assert draw(*ROWS).picture.size == (64, 64)

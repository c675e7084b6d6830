"""Rows, recipes and what they mean on a pipeline: nothing of a recipe is lost on its way through the page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffadapt import shapes
from diffadapt.apps.mixer import mix
from diffadapt.apps.mixer.cards import Card
from diffadapt.apps.mixer.library import Library
from diffadapt.apps.mixer.mix import Row
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.apps.mixer.studio import Studio, embedded
from diffadapt.errors import RecipeError
from diffadapt.inject.schedule import Window, steps
from diffadapt.recipe import Part, Recipe
from tests.apps.conftest import Drawing

BY_BLOCK = {"unet": {"down": 0.1, "mid": 1 / 3, "up.1": 0.7000000000000001}, "text_encoder": 0.2}
PARTS = [
    Part(name="ink", file="ink.safetensors", weight=0.1 + 0.2),
    Part(name="ink", weight=0.7, strength=BY_BLOCK),
    Part(name="ink", weight=-0.3, strength=[0.5, 1 / 3]),
    Part(name="ink", schedule=Window(0.1, 0.7, 0.3)),
    Part(name="ink", weight=0.4, strength={"unet": {"mid": Window(0.2, 0.4)}}),
    Part(name="ink", weight=0.4, strength=BY_BLOCK, schedule=steps([1.0, 0.2, 1 / 3])),
    Part(name="ink", tag="<lora:other:0.3:0.7:lbw=1,0.30000000000000004:start=2:stop=5:foo=bar>", at=1),
    Part(name="ink", tag="<lora:ink:0.3:0.7>", schedule=Window(0.25, 0.75)),
    Part(name="ink", tag="<lyco:ink:0.3:0.7:dyn=4:x=0.5>"),
    Part(
        name="ink", sha256="ab" * 32, autov3="cd" * 6, size=77, config="ef" * 32, rule="scaled", alpha=0.5,
        into={"unet": "transformer"}, triggers=("inky", "wet"),
    ),
]  # fmt: skip


def there_and_back(recipe: Recipe, shelf: Shelf) -> tuple[list[Row], Recipe]:
    """The rows of a recipe as the page has them, plain data, and the recipe of those."""
    rows, _ = mix.from_recipe(recipe, shelf)
    sent = json.loads(json.dumps([row.to_data() for row in rows]))
    said = {"seed": recipe.seed, "steps": recipe.steps, "merged": recipe.merged, "method": recipe.method}
    return rows, mix.to_recipe(mix.rows_of(sent), recipe.prompt, said)


def strong(part: Part) -> dict[str, Any]:
    """How strong a part is, where and when."""
    data = part.to_data()
    if part.tag is not None:
        data["tag"] = str(replace(part.mention, name="", at=None))
    elif data.keys().isdisjoint({"strength", "schedule"}):
        data["tag"] = str(replace(part.mention, name="", at=None))
        data.pop("weight", None)
    data.pop("at", None)
    return data


@pytest.mark.parametrize("part", PARTS, ids=range(len(PARTS)))
def test_a_recipe_is_the_same_after_the_page(part: Part, shelf_of: Callable[..., Shelf]) -> None:
    shelf = shelf_of(Card("ink", "ink", trigger_words=("inky",)))
    recipe = Recipe(adapters=(part,), prompt="a star", seed=4, steps=8)
    _, again = there_and_back(recipe, shelf)
    (found,) = again.adapters
    assert strong(replace(found, file=part.file)) == strong(part)
    assert again.prompt == recipe.prompt


@pytest.mark.parametrize("part", [part for part in PARTS if part.tag is None and (part.strength or part.schedule)])
def test_held_strengths_stay_until_blocks_or_steps_are_given(part: Part, shelf_of: Callable[..., Shelf]) -> None:
    shelf = shelf_of(Card("ink", "ink"))
    rows, _ = there_and_back(Recipe(adapters=(part,), prompt="a star", steps=8), shelf)
    (row,) = mix.with_prompt(rows, mix.to_prompt(rows, "a star") + " at night", shelf)
    same = row.to_part()
    assert (same.strength, same.schedule, same.weight) == (part.strength, part.schedule, part.weight)
    assert replace(row, weight=0.25).to_part().strength == part.strength
    for own in ({"blocks": "FIRST"}, {"start": 0.5}, {"te": 0.5}):
        given = replace(row, **own).to_part()
        assert (given.strength, given.schedule) == (None, None)
        assert given.mention == replace(replace(row, part=None, **own).to_part().mention)


def test_what_a_recipe_holds_beside_its_fields_goes_no_further(shelf_of: Callable[..., Shelf]) -> None:
    """Gradio would take a stranger's field for a file of the server that the page is to show."""
    stranger = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    part = Part(name="ink", source="/somewhere/ink.safetensors", extra={"picture": stranger})
    rows, _ = mix.from_recipe(Recipe(adapters=(part,)), shelf_of(Card("ink", "ink")))
    sent = json.dumps([row.to_data() for row in rows])
    assert "passwd" not in sent
    assert "somewhere" not in sent


def test_tags_stay_where_they_stand() -> None:
    """Though gaps that they leave are closed."""
    text = "aa  bb  <lora:ink:0.5> cc  <lora:mist:0.5>dd <lora:glow:0.5>"
    recipe = mix.to_recipe(mix.with_prompt([], text, Shelf(Library(()))), text, {})
    assert recipe.prompt == "aa bb cc dd"
    assert recipe.to_prompt() == "aa bb <lora:ink:0.5>cc <lora:mist:0.5>dd<lora:glow:0.5>"


def test_adapters_that_are_not_there_are_named(shelf_of: Callable[..., Shelf]) -> None:
    shelf = shelf_of(Card("ink", "ink"))
    recipe = Recipe(adapters=(Part(name="ink"), Part(name="mist", file="mist.safetensors")))
    rows, missing = mix.from_recipe(recipe, shelf)
    assert [row.id for row in rows] == ["ink", ""]
    assert missing == ["'mist' (mist.safetensors)"]
    with pytest.raises(RecipeError, match=r"does not have 'mist' \(mist.safetensors\)"):
        shelf.resolve(mix.to_recipe(rows, "a star", {}))
    assert len(shelf.resolve(mix.to_recipe([rows[0], replace(rows[1], on=False)], "", {})).adapters) == 1


def test_a_constant_total_scales_sizes_and_keeps_the_rest(draw: Drawing, studio: Studio) -> None:
    rows = [Row("glow", "glow", weight=1.5), Row("frame", "frame", weight=-0.5, te=0.25), Row("dusk", "dusk", on=False)]
    plain = mix.to_recipe(rows, "a star", {"normalise": "sum"})
    total = mix.to_recipe(rows, "a star", {"normalise": mix.CONSTANT})
    assert [part.main_weight for part in plain.adapters] == [1.5, -0.5]
    assert [part.main_weight for part in total.adapters] == [0.75, -0.25]
    assert total.adapters[1].mention.te == 0.125
    assert mix.to_recipe([], "", {"normalise": mix.CONSTANT}).adapters == ()
    nothing = mix.to_recipe([replace(rows[0], weight=0.0)], "", {"normalise": mix.CONSTANT})
    assert nothing.adapters[0].main_weight == 0.0
    found = draw(*rows, normalise=mix.CONSTANT)
    assert found.picture.tobytes() == draw(replace(rows[0], weight=0.75), replace(rows[1], weight=-0.25, te=0.125)) \
        .picture.tobytes()  # fmt: skip
    with pytest.raises(RecipeError, match="No normalisation"):
        mix.to_recipe(rows, "", {"normalise": "both"})


@pytest.fixture(scope="module", params=shapes.PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> tuple[Studio, Shelf]:
    """Each embedded pipeline, and the shelf of its adapters."""
    if request.param == "unet":
        return request.getfixturevalue("studio"), request.getfixturevalue("shelf")
    studio, library = embedded(request.param)
    library.scan(wait=True)
    return studio, Shelf(library)


def block_of(key: Any, names: Sequence[str]) -> str | None:
    """The block of a layout that a module of the denoiser is in."""
    module = key.module.replace("down_blocks.", "down.").replace("up_blocks.", "up.").replace("mid_block.", "mid.")
    return next((name for name in names if module.startswith(f"{name}.")), None)


def test_a_sum_has_the_strengths_that_the_tags_mean(pipeline: tuple[Studio, Shelf]) -> None:
    """By component, by block, and the window of each, to the bit."""
    studio, shelf = pipeline
    layout = studio.layout
    assert layout is not None
    own = [round(0.1 + i / 7, 3) for i in range(len(layout.names))]
    text = (
        f"a star <lora:zibo:0.3:0.7> <lora:glow:0.5:lbw=FIRST> <lora:outline:-0.4:lbw={','.join(map(str, own))}> "
        f"<lora:frame:0.6:start=0.25:stop=0.75> <lora:dusk:0.8:1:lbw=LAST:start=1:stop=3>"
    )
    recipe = mix.to_recipe(mix.with_prompt([], text, shelf), text, {"steps": 4})
    with studio.mixed(shelf.resolve(recipe)) as names:
        found = {name: studio.pipeline.adapters.numbers(names[name]) for name in names}
    ones, window = [1.0] * len(own), Window(0.25, 0.75)
    wanted: dict[str, tuple[float, float, Sequence[float], Window | None]] = {
        "zibo": (0.3, 0.7, ones, None), "glow": (0.5, 0.5, layout.presets["FIRST"], None),
        "outline": (-0.4, -0.4, own, None), "frame": (0.6, 0.6, ones, window),
        "dusk": (0.8, 1.0, layout.presets["LAST"], window),
    }  # fmt: skip
    assert found.keys() == wanted.keys()
    for name, (te, unet, values, moment) in wanted.items():
        blocks = dict(zip(layout.names, values, strict=True))
        for key, number in found[name].items():
            block = block_of(key, layout.names[1:]) if key.component == layout.component else layout.names[0]
            strength = (te if key.component.startswith("text_encoder") else unet) * (blocks[block] if block else 1.0)
            assert number == (strength if moment is None else moment * strength), (name, key)
    components = {key.component for numbers in found.values() for key in numbers}
    assert {layout.component, "text_encoder"} <= components


@pytest.fixture
def twins(tmp_path: Path, studio: Studio) -> Shelf:
    """Two adapters of one name in two folders of a library."""
    for folder, name in (("a", "glow"), ("b", "frame")):
        (tmp_path / folder).mkdir()
        path = next(sample.path for sample in shapes.adapters("unet") if sample.name == name)
        shutil.copyfile(path, tmp_path / folder / "style.safetensors")
    library = Library([tmp_path], studio.pipeline)
    library.scan(wait=True)
    return Shelf(library)


def test_a_row_means_the_file_of_its_card(twins: Shelf, studio: Studio, draw: Drawing) -> None:
    """Not another one of the same name; and a card may be in a mix twice."""
    cards = [twins.card(f"{folder}/style.safetensors") for folder in "ab"]
    own = Drawing(studio, twins)
    for card, name in zip(cards, ("glow", "frame"), strict=True):
        found = own(replace(mix.row_of_card(card, []), triggers=()))
        assert found.picture.tobytes() == draw(Row(name, name)).picture.tobytes()
        assert found.recipe.adapters[0].sha256 == draw(Row(name, name)).recipe.adapters[0].sha256
    rows: list[Row] = []
    for card in (*cards, cards[0]):
        rows.append(replace(mix.row_of_card(card, rows), weight=0.5, triggers=()))
    assert [row.name for row in rows] == ["style", "style_2", "style_3"]
    mixed = own(*rows)
    alike = draw(Row("glow", "glow", weight=0.5), Row("frame", "frame", weight=0.5), Row("glow", "glow_2", weight=0.5))
    assert mixed.picture.tobytes() == alike.picture.tobytes()
    again, missing = mix.from_recipe(Recipe.from_json(mixed.recipe.to_json()), twins)
    assert (missing, [row.id for row in again]) == ([], [row.id for row in rows])
    by_tag = mix.with_prompt([], "<lora:b/style:0.5>", twins)
    assert own.recipe(by_tag).adapters[0].source == str(twins.path("b/style.safetensors"))

"""What leaves the mixer draws what the mixer drew, and what comes back is the mix that left."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, PngImagePlugin
from safetensors import safe_open

import diffadapt
from diffadapt import shapes
from diffadapt.apps import proof
from diffadapt.apps.mixer import keep, mix
from diffadapt.apps.mixer.library import Library
from diffadapt.apps.mixer.mix import Row
from diffadapt.apps.mixer.session import Session
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.apps.mixer.studio import Studio
from diffadapt.errors import DiffAdaptError, RecipeError
from diffadapt.recipe import Recipe
from tests.apps import files
from tests.apps.conftest import QUICK, Drawing, row

LORAS = [row("outline", 0.7), row("frame", -0.5, blocks="LAST")]
KINDS = [row("glow", 0.5), row("zibo", 0.6, te=0.2), row("duotone", 0.4, blocks="1,1,0,0.5,1,0.25,1,1")]
DIALECTS = ("kohya", "diffusers", "peft", "comfy", "lycoris", "onetrainer", "bare")


@pytest.fixture(scope="module")
def fresh() -> Any:
    """A pipeline that nothing was ever loaded on."""
    return diffadapt.enable(shapes.load("unet"))


@pytest.fixture
def saved(draw: Drawing, tmp_path: Path) -> Any:
    """Makes a file of a mix."""

    def save(recipe: Recipe, dialect: str = "kohya", rank: int | None = None, dtype: str = "fp32") -> Path:
        return keep.save_mix(draw.studio, draw.shelf, recipe, tmp_path, dialect, rank, dtype)

    return save


def drawn_with(pipe: Any, path: Path, recipe: Recipe) -> Image.Image:
    """The picture of a pipeline with one adapter file and no other."""
    pipe.adapters.clear()
    report = pipe.load_adapter(path)
    assert report.complete
    found: Image.Image = shapes.picture(pipe, recipe.worded, QUICK["seed"], num_inference_steps=QUICK["steps"])
    return found


@pytest.fixture(scope="module")
def wanted(draw: Drawing) -> Image.Image:
    """The picture of `LORAS`; that of nothing, and that without block weights, are others."""
    found = draw(*LORAS).picture
    assert proof.difference(found, draw().picture) > 10
    assert proof.difference(found, draw(LORAS[0], replace(LORAS[1], blocks="")).picture) > 5
    return found


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_saved_mix_draws_what_the_mix_draws(
    draw: Drawing, fresh: Any, saved: Any, wanted: Image.Image, dialect: str
) -> None:
    recipe = draw.recipe(LORAS)
    assert proof.difference(drawn_with(fresh, saved(recipe, dialect), recipe), wanted) <= proof.AGREE


def test_a_saved_mix_of_other_kinds_draws_the_same(draw: Drawing, fresh: Any, saved: Any) -> None:
    recipe = draw.recipe(KINDS)
    wanted = draw(*KINDS).picture
    assert proof.difference(drawn_with(fresh, saved(recipe), recipe), wanted) <= proof.AGREE
    draw(row("stripes"), merged=True)  # what is merged meanwhile is not part of the mix
    assert proof.difference(drawn_with(fresh, saved(recipe), recipe), wanted) <= proof.AGREE


def test_ranks_and_types_are_those_that_are_asked_for(
    draw: Drawing, fresh: Any, saved: Any, wanted: Image.Image
) -> None:
    recipe = draw.recipe(LORAS)
    for dtype, name in (("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")):
        path = saved(recipe, rank=3, dtype=dtype)
        with safe_open(path, "pt") as found:
            shapes_ = {key: found.get_slice(key) for key in found.keys()}  # noqa: SIM118
        assert {one.get_dtype() for key, one in shapes_.items() if "lora_" in key} == {name}
        assert {one.get_shape()[0] for key, one in shapes_.items() if key.endswith("lora_down.weight")} == {3}
    whole = drawn_with(fresh, saved(recipe, dtype="fp16"), recipe)
    assert proof.difference(whole, wanted) <= 4 * proof.AGREE


def test_another_method_is_saved_as_it_is_drawn(draw: Drawing, fresh: Any, saved: Any) -> None:
    rows = [row("outline", 0.7), row("frame", 0.6)]
    recipe = draw.recipe(rows, method="svd", options={"rank": 4})
    wanted = draw.of(recipe).picture
    assert proof.difference(drawn_with(fresh, saved(recipe), recipe), wanted) <= proof.AGREE
    again = drawn_with(fresh, saved(recipe, rank=8), draw.recipe(rows, method="svd", options={"rank": 8}))
    assert proof.difference(again, draw(*rows, method="svd", options={"rank": 8}).picture) <= proof.AGREE


@pytest.mark.parametrize(
    ("rows", "options", "word"),
    [
        ([], {}, "nothing to save"),
        ([row("outline", stop=0.5), row("frame")], {}, "outline.* follows the denoising"),
        ([row("frame"), row("outline", tag="<lora:n:1:start=1>")], {}, "outline.* follows the denoising"),
        ([row("outline"), row("frame", blocks="FIRST")], {"method": "ties"}, "by block"),
        ([row("outline", tag="<lora:n:1:dyn=2>")], {}, "not done here"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name(
    draw: Drawing, saved: Any, tmp_path: Path, rows: list[Row], options: dict[str, Any], word: str
) -> None:
    with pytest.raises(DiffAdaptError, match=word):
        saved(draw.recipe(rows, **options))
    assert not list(tmp_path.iterdir())


def test_dialects_and_types_that_there_are_not(draw: Drawing, saved: Any) -> None:
    recipe = draw.recipe(LORAS)
    with pytest.raises(DiffAdaptError, match="no dialect 'nonsense'"):
        saved(recipe, "nonsense")
    with pytest.raises(RecipeError, match="'fp8' is none of fp16, bf16, fp32"):
        saved(recipe, dtype="fp8")
    with pytest.raises(DiffAdaptError, match="kohya"):
        saved(draw.recipe(KINDS), "diffusers")  # says who can


def test_the_mix_of_two_files_of_one_name(studio: Studio, tmp_path: Path, fresh: Any) -> None:
    for below, name in (("a", "outline"), ("b", "frame")):
        (tmp_path / below).mkdir()
        shutil.copyfile(files.adapters("unet")[name], tmp_path / below / "style.safetensors")
    library = Library([tmp_path], studio.pipeline)
    library.scan(wait=True)
    drawing, rows = Drawing(studio, Shelf(library)), list[Row]()
    for card in drawing.shelf.cards():
        rows.append(replace(mix.row_of_card(card, rows), weight=0.5, triggers=()))
    recipe = drawing.recipe(rows)
    path = keep.save_mix(studio, drawing.shelf, recipe, tmp_path, "kohya", None, "fp32")
    assert proof.difference(drawn_with(fresh, path, recipe), drawing(*rows).picture) <= proof.AGREE


# -- coming back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [LORAS, KINDS, [row("dusk", 0.5, start=0.5), row("zibo", triggers=("zibo",))], []])
def test_a_picture_brings_its_mix_back(draw: Drawing, tmp_path: Path, rows: list[Row]) -> None:
    drawn = draw(*rows, negative="blue", guidance=4.5)
    shot = Session(tmp_path).keep(drawn)
    recipe = keep.read_recipe(shot.path)
    assert recipe == drawn.recipe
    back, missing = mix.from_recipe(recipe, draw.shelf)
    assert missing == []
    assert [(one.name, one.weight, one.triggers) for one in back] == [(r.name, r.weight, r.triggers) for r in rows]
    again = draw(*back, negative=recipe.negative, guidance=recipe.guidance, seed=recipe.seed, steps=recipe.steps)
    assert again.picture.tobytes() == drawn.picture.tobytes()
    with Image.open(shot.path) as image:
        assert image.tobytes() == drawn.picture.tobytes()
        parameters = image.info["parameters"]
    for said in ("Negative prompt: blue", "Seed: 3", "Steps: 2", "CFG scale: 4.5"):
        assert said in parameters
    assert all(f"<lora:{one.name}" in parameters for one in rows)
    assert str(tmp_path) not in shot.path.read_bytes().decode("latin-1")


def test_a_recipes_file_brings_its_mix_back(draw: Drawing, tmp_path: Path) -> None:
    recipe = draw(*KINDS).recipe
    assert keep.read_recipe(recipe.save(tmp_path / "mix.json")) == recipe
    assert str(tmp_path) not in (tmp_path / "mix.json").read_text()


def test_a_preset_brings_its_mix_back(draw: Drawing, tmp_path: Path) -> None:
    said = {
        "loras": ["glow.safetensors", "styles/frame.safetensors", "mist.sft"],
        "loras_mult": "0.5 0.25,0.75",
        "seed": 3,
    }
    path = tmp_path / "mix.lset"
    path.write_text(json.dumps(said | {"num_inference_steps": 2, "prompt": "a star"}))
    recipe = keep.read_recipe(path)
    rows, missing = mix.from_recipe(recipe, draw.shelf)
    assert [(one.id, one.weight) for one in rows] == [("glow", 0.5), ("frame", 1.0), ("", 1.0)]
    assert missing == ["'mist' (mist.sft)"]
    assert rows[1].to_part().schedule == recipe.adapters[1].schedule is not None
    drawn = draw(*rows[:2])
    assert drawn.picture.tobytes() != draw(rows[0]).picture.tobytes()


def bad_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files that hold no recipe, and a word of what is said of each."""
    Image.new("RGB", (8, 8), "red").save(folder / "plain.png")
    yield folder / "plain.png", "says nothing of a mix"
    info = PngImagePlugin.PngInfo()
    info.add_text("diffadapt-recipe", "{not json")
    info.add_text("diffadapt", "{not json")
    Image.new("RGB", (8, 8)).save(folder / "wrong.png", pnginfo=info)
    yield folder / "wrong.png", ""
    texts = {
        "text.json": ("hello", ""), "list.json": ("[1, 2]", ""), "other.json": ('{"format": "other"}', "is no recipe"),
        "newer.json": ('{"format": "diffadapt-recipe", "version": 99}', "version"), "empty.json": ("", ""),
        "preset.lset": ("{}", "no field 'loras'"), "wrong.lset": ('{"loras": 5}', "expected a list"),
        "notes.txt": ("a text", ""), "page.png": (files.PAGE, ""),
    }  # fmt: skip
    for name, (text, word) in texts.items():
        (folder / name).write_text(text)
        yield folder / name, word
    for name in ("huge.json", "huge.lset", "huge.png"):
        (folder / name).write_bytes(
            (b"\x89PNG\r\n\x1a\n" if name == "huge.png" else b"{") + random.Random(0).randbytes(3 << 20)
        )
        yield folder / name, "" if name == "huge.png" else "1048576"
    for name, content in (("cut.png", (folder / "plain.png").read_bytes()[:40]), ("start.png", b"\x89PNG")):
        (folder / name).write_bytes(content)
        yield folder / name, ""
    (folder / "folder.json").mkdir()
    yield folder / "folder.json", "cannot be read"
    yield folder / "none.json", "cannot be read"


def test_what_holds_no_mix_is_refused_in_a_sentence(tmp_path: Path) -> None:
    count = 0
    for path, word in bad_files(tmp_path):
        with pytest.raises(RecipeError) as caught:
            keep.read_recipe(path)
        said = str(caught.value)
        assert word in said, path.name
        assert path.name in said
        assert str(tmp_path) not in said
        assert len(said) < 400
        count += 1
    assert count > 15

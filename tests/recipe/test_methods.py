"""A recipe whose method makes one adapter of its parts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import diffadapt
from diffadapt.errors import CombineError, RecipeError
from diffadapt.recipe import Merge, Part, Recipe
from diffadapt.recipe.recipe import MADE_BY
from diffadapt.schedule import first
from tests import tiny

WEIGHTS = {"ink": 0.7, "pixel": -0.4}


@pytest.fixture
def recipe(library: Path) -> Recipe:
    pipe = diffadapt.enable(tiny.sd())
    pipe.load_adapter(library / "ink.safetensors", adapter_name="ink")
    pipe.load_adapter(library / "sub" / "pixel.safetensors", adapter_name="pixel")
    pipe.adapters.set(WEIGHTS)
    made = Recipe.of(pipe, prompt="a cat", seed=3)
    return Recipe(
        adapters=made.adapters, prompt="a cat", seed=3, method="ties_svd", options={"density": 0.3, "rank": 6}
    )


def by_hand(library: Path) -> torch.Tensor:
    pipe = diffadapt.enable(tiny.sd())
    files = {"ink": library / "ink.safetensors", "pixel": library / "sub" / "pixel.safetensors"}
    read = {name: diffadapt.read_adapter(file, pipeline=pipe) for name, file in files.items()}
    mix = diffadapt.combine({read[n]: w for n, w in WEIGHTS.items()}, "ties_svd", density=0.3, rank=6, base=pipe)
    pipe.adapters.load(mix, "mix")
    return tiny.run(pipe.unet)


def test_it_is_what_combine_makes(recipe: Recipe, library: Path) -> None:
    pipe = diffadapt.enable(tiny.sd())
    pipe.load_adapter(library / "ink.safetensors", adapter_name="other")
    assert recipe.apply(pipe) == {"ink": "mix", "pixel": "mix"}
    assert pipe.adapters.strengths == {"other": 0.0, "mix": 1.0}
    assert torch.equal(tiny.run(pipe.unet), by_hand(library))
    recipe.apply(pipe)  # there already
    assert list(pipe.adapters.names) == ["other", "mix"]


def test_it_is_written_down_and_made_again(recipe: Recipe, library: Path, tmp_path: Path) -> None:
    pipe = diffadapt.enable(tiny.sd())
    recipe.apply(pipe)
    again = Recipe.of(pipe)
    assert again.adapters == recipe.without_paths().adapters
    assert (again.method, again.options, again.prompt) == (recipe.method, recipe.options, recipe.prompt)
    again.save(tmp_path / "mix.json")
    other = diffadapt.enable(tiny.sd())
    Recipe.load(tmp_path / "mix.json").apply(other, library)
    assert torch.equal(tiny.run(other.unet), tiny.run(pipe.unet))


def test_its_file_says_how_it_was_made(recipe: Recipe, tmp_path: Path) -> None:
    pipe = diffadapt.enable(tiny.sd())
    recipe.apply(pipe)
    file = pipe.adapters.save("mix", tmp_path / "mix.safetensors", dialect="kohya")
    said = json.loads(diffadapt.read_adapter(file).metadata.raw[MADE_BY])
    assert said["method"] == "ties_svd"
    assert [part["name"] for part in said["adapters"]] == ["ink", "pixel"]


def test_exact_methods_keep_strengths_by_block(recipe: Recipe) -> None:
    blocks = {"unet": {"down": 0.2, "mid": 1.5, "default": 0.0}}
    parts = tuple(replace(part, weight=1.0, strength=blocks) for part in recipe.adapters)
    live, made = diffadapt.enable(tiny.sd()), diffadapt.enable(tiny.sd())
    replace(recipe, adapters=parts, method="sum", options={}).apply(live)
    replace(recipe, adapters=parts, method="svd", options={"rank": 64}).apply(made)
    # Full rank loses nothing; the factors are multiplied in another order.
    torch.testing.assert_close(tiny.run(made.unet), tiny.run(live.unet), rtol=1e-4, atol=1e-5)
    assert not torch.equal(tiny.run(made.unet), tiny.run(diffadapt.enable(tiny.sd()).unet))


def test_it_is_merged_and_leaves_the_very_bits(recipe: Recipe) -> None:
    pipe = diffadapt.enable(tiny.sd())
    before = tiny.snapshot(pipe.unet)
    merged = replace(recipe, merge=Merge(names=("ink", "pixel")))
    merged.apply(pipe)
    assert pipe.adapters.merged
    assert Recipe.of(pipe).merge == merged.merge
    pipe.adapters.unmerge()
    assert tiny.same_bits(pipe.unet, before)


def test_what_fails_leaves_the_pipeline(recipe: Recipe, library: Path) -> None:
    pipe: Any = diffadapt.enable(tiny.sd())
    pipe.load_adapter(library / "ink.safetensors", adapter_name="ink")
    pipe.adapters.merge()
    before = tiny.run(pipe.unet)
    scheduled = replace(recipe.adapters[0], schedule=first(0.5))
    for wrong, error, message in (
        (replace(recipe, method="no such rule"), CombineError, "no method is called"),
        (replace(recipe, options={"rank": 6, "sharpness": 3}), CombineError, "no option 'sharpness'"),
        (
            replace(recipe, adapters=(scheduled, recipe.adapters[1])),
            RecipeError,
            "'ink' has a strength by block or step",
        ),
        (replace(recipe, adapters=(Part(name="x", file="gone.safetensors"),)), RecipeError, "cannot be had"),
    ):
        with pytest.raises(error, match=message):
            wrong.apply(pipe)
        assert pipe.adapters.merged
        assert list(pipe.adapters.names) == ["ink"]
        assert torch.equal(tiny.run(pipe.unet), before)


def test_switched_on_trigger_words_follow_the_prompt(recipe: Recipe) -> None:
    parts = (replace(recipe.adapters[0], triggers=("ink wash", "cat")), replace(recipe.adapters[1], triggers=("8bit",)))
    assert replace(recipe, adapters=parts).worded == "a cat, ink wash, 8bit"
    assert recipe.worded == "a cat"
    assert replace(recipe, adapters=parts, prompt="").worded == "ink wash, cat, 8bit"

"""WanGP's presets: files, multipliers, prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffadapt.errors import RecipeError
from diffadapt.inject.schedule import steps
from diffadapt.recipe import Recipe, read_lset

LINK = "https://huggingface.co/owner/name/resolve/main/b%20c.safetensors?download=true"


def written(tmp_path: Path, **fields: Any) -> Path:
    path = tmp_path / "mix.lset"
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def test_a_preset_is_a_recipe(tmp_path: Path) -> None:
    path = written(
        tmp_path, loras=["style/a.safetensors", LINK, "d.sft", "e.safetensors"],
        loras_mult="# strong first\n1.2 0.9,0.8,0.7|\n0;1", prompt="# use ohnvx\nA ohnvx cat", full_prompt=True,
    )  # fmt: skip
    recipe = read_lset(path)
    first, second, third, fourth = recipe.adapters
    assert (first.name, first.file, first.source, first.weight) == ("a", "style/a.safetensors", None, 1.2)
    assert (second.name, second.file, second.source) == ("b c", "b c.safetensors", LINK)
    assert (second.weight, second.schedule) == (1.0, steps([0.9, 0.8, 0.7]))
    assert third.strength == {"transformer": 0.0, "transformer_2": 1.0}
    assert (fourth.weight, fourth.schedule) == (1.0, None)
    assert recipe.prompt == "# use ohnvx\nA ohnvx cat"
    assert recipe.extra == {"lset": {"full_prompt": True}}
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_the_names_of_settings_files_are_read_too(tmp_path: Path) -> None:
    path = written(
        tmp_path, activated_loras=["a.safetensors", "b/a.safetensors"], loras_multipliers=["0.5", 2],
        num_inference_steps=8, guidance_scale=1, seed=-1,
    )  # fmt: skip
    recipe = read_lset(path)
    assert [(part.name, part.weight) for part in recipe.adapters] == [("a", 0.5), ("a_2", 2.0)]
    assert (recipe.steps, recipe.guidance, recipe.seed) == (8, 1, None)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "no field"),
        ({"loras": "a"}, "expected a list"),
        ({"loras": [1]}, "expected text"),
        ({"loras": ["a"], "loras_mult": "strong"}, "no number"),
        ({"loras": ["a"], "loras_mult": "1e999"}, "finite"),
        ({"loras": ["a"], "loras_mult": "nan"}, "no number"),
        ({"loras": ["a"], "loras_mult": "0;1;0"}, "phase"),
        ({"loras": ["a"], "loras_mult": "0;1,0.5"}, "phase"),
        ({"loras": ["a"], "loras_mult": 3}, "expected text"),
        ({"loras": ["a"] * 300}, "at most"),
        ({"loras": [], "prompt": 3}, "prompt"),
    ],
)
def test_what_is_no_preset_is_refused(tmp_path: Path, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=word):
        read_lset(written(tmp_path, **fields))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.lset"
    with pytest.raises(RecipeError, match=r"x\.lset: cannot be read"):
        read_lset(path)
    for data in (b"", b"[1]", b"\xff\xfe", b'{"loras": [NaN]}', b"[" * 100_000, b" " * (1 << 21)):
        path.write_bytes(data)
        with pytest.raises(RecipeError, match=r"x\.lset"):
            read_lset(path)

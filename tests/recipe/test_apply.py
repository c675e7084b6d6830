"""A mix is written down, and made again to the bit on another pipeline; what fails leaves a pipeline as it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import diffadapt
from diffadapt.errors import DiffAdaptError, RecipeError
from diffadapt.recipe import Merge, Part, Recipe
from tests import tiny

MIX = {"ink": 0.7, "pixel": {"unet": {"down": 0.2, "mid": 0.6, "up": {"block_0": [0.5, 0.1]}}}}


def fresh() -> Any:
    return diffadapt.enable(tiny.sd())


@pytest.fixture
def mixed(library: Path) -> Any:
    pipe = fresh()
    pipe.load_adapter(library / "ink.safetensors", adapter_name="ink")
    pipe.load_adapter(library / "sub" / "pixel.safetensors", adapter_name="pixel")
    pipe.adapters.set(MIX)
    return pipe


def state(pipe: Any) -> tuple[Any, ...]:
    """All that a stack tells of itself, and what the model gives."""
    stack = pipe.adapters
    out = tiny.run(pipe.unet)
    return stack.names, stack.strengths, stack.enabled, stack.merged_parts, out.numpy().tobytes()


def test_a_mix_is_made_again_to_the_bit(mixed: Any, library: Path, tmp_path: Path) -> None:
    want = tiny.run(mixed.unet)
    assert not torch.equal(want, tiny.run(tiny.unet()))
    path = Recipe.of(mixed, prompt="a cat", seed=3, steps=4, guidance=2.0).save(tmp_path / "mix.json")
    recipe = Recipe.load(path)
    assert [part.name for part in recipe.adapters] == ["ink", "pixel"]
    assert recipe.sampler == "DDIMScheduler"
    pipe = fresh()
    assert recipe.apply(pipe) == {"ink": "ink", "pixel": "pixel"}
    assert torch.equal(tiny.run(pipe.unet), want)
    assert Recipe.of(pipe, prompt="a cat", seed=3, steps=4, guidance=2.0) == recipe


def test_a_merged_mix_is_merged_again_to_the_bit(mixed: Any) -> None:
    mixed.adapters.merge({"unet": ["ink"]})
    recipe = Recipe.of(mixed)
    assert recipe.merged
    pipe = fresh()
    before = tiny.snapshot(pipe.unet)
    recipe.apply(pipe)
    assert pipe.adapters.merged_parts == {"unet": ("ink",)}
    assert tiny.same_bits(pipe.unet, mixed.unet.state_dict())
    assert torch.equal(tiny.run(pipe.unet), tiny.run(mixed.unet))
    mixed.adapters.unmerge()
    Recipe.of(mixed).apply(pipe)
    assert not pipe.adapters.merged
    assert tiny.same_bits(pipe.unet, before)
    assert torch.equal(tiny.run(pipe.unet), tiny.run(mixed.unet))


def test_a_mix_with_schedules_is_made_again(mixed: Any) -> None:
    from diffadapt.inject.schedule import points, window

    mixed.adapters.set({"ink": window(0.0, 0.5, 0.8), "pixel": {"unet": {"mid": points([(0, 1.0), (1, 0.2)])}}})
    recipe = Recipe.from_json(Recipe.of(mixed).to_json())
    pipe = fresh()
    recipe.apply(pipe)
    assert pipe.adapters.strengths["ink"] == window(0.0, 0.5, 0.8)
    for progress in (0.25, 0.75):
        mixed.adapters.progress = pipe.adapters.progress = progress
        assert torch.equal(tiny.run(pipe.unet), tiny.run(mixed.unet))


def test_alpha_and_rule_and_place_are_part_of_a_recipe(library: Path) -> None:
    first = fresh()
    first.load_adapter(library / "ink.safetensors", alpha=8.0, weight=0.5)
    recipe = Recipe.of(first)
    assert recipe.adapters[0].alpha == 8.0
    pipe = fresh()
    recipe.apply(pipe)
    assert torch.equal(tiny.run(pipe.unet), tiny.run(first.unet))
    # The same file, read in another way, is another adapter.
    pipe = fresh()
    pipe.load_adapter(library / "ink.safetensors")
    assert recipe.apply(pipe) == {"ink": "ink_2"}
    assert pipe.adapters.strengths == {"ink": 0.0, "ink_2": 0.5}


def test_files_are_found_by_name_and_by_hash(mixed: Any, library: Path, tmp_path: Path) -> None:
    recipe = Recipe.of(mixed).without_paths()
    want = tiny.run(mixed.unet)
    pipe = fresh()
    recipe.apply(pipe, library)
    assert torch.equal(tiny.run(pipe.unet), want)
    (tmp_path / "deep").mkdir()
    shutil.copy(library / "ink.safetensors", tmp_path / "deep" / "renamed.safetensors")
    shutil.copy(library / "ink.safetensors", tmp_path / "pixel.safetensors")  # the name of another
    shutil.copy(library / "sub" / "pixel.safetensors", tmp_path / "ink.safetensors")
    pipe = fresh()
    recipe.apply(pipe, tmp_path)
    assert torch.equal(tiny.run(pipe.unet), want)
    assert pipe.adapters["ink"].path == tmp_path / "pixel.safetensors"


def test_what_is_loaded_is_used_under_its_own_name(mixed: Any, library: Path) -> None:
    recipe = Recipe.of(mixed)
    pipe = fresh()
    pipe.load_adapter(library / "sub" / "pixel.safetensors", adapter_name="mine")
    pipe.load_adapter({k: v * 2 for k, v in _tensors(library).items()}, adapter_name="ink")
    assert recipe.apply(pipe) == {"ink": "ink_2", "pixel": "mine"}
    assert pipe.adapters.active == {"mine": recipe.adapters[1].strength, "ink_2": 0.7}
    assert recipe.apply(pipe) == {"ink": "ink_2", "pixel": "mine"}
    assert pipe.adapters.names == ("mine", "ink", "ink_2")


def _tensors(library: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(library / "ink.safetensors")


def test_missing_files_are_all_named_and_nothing_changes(mixed: Any, tmp_path: Path) -> None:
    recipe = Recipe.of(mixed).without_paths()
    pipe = fresh()
    before = state(pipe)
    with pytest.raises(RecipeError, match=r"2 of the recipe's files.*'ink' \(ink\.safetensors\).*'pixel'"):
        recipe.apply(pipe, tmp_path)
    with pytest.raises(RecipeError, match="no such file was found"):
        recipe.apply(pipe)
    assert state(pipe) == before


def test_another_file_of_the_name_is_refused(mixed: Any, other: Path, library: Path) -> None:
    mixed.adapters.set({"ink": 0.5})
    recipe = Recipe.of(mixed).without_paths()
    (part,) = recipe.adapters
    pipe = fresh()
    before = state(pipe)
    with pytest.raises(RecipeError, match=r"ink\.safetensors has sha256 [0-9a-f]{64}, expected") as caught:
        recipe.apply(pipe, other)
    assert part.sha256 in str(caught.value)
    assert state(pipe) == before
    recipe.apply(pipe, other, check=False)
    assert pipe.adapters["ink"].path == other / "ink.safetensors"


def test_a_short_hash_is_checked_too(library: Path, other: Path) -> None:
    from diffadapt.io.hashes import hash_file

    hashes = hash_file(library / "ink.safetensors")
    for short in (hashes.autov3, hashes.autov2, hashes.sha256):
        recipe = Recipe(adapters=(Part(name="ink", autov3=short),))
        recipe.apply(fresh(), library)
        with pytest.raises(RecipeError, match="expected"):
            recipe.apply(fresh(), other)


BREAKING: dict[str, Callable[[Recipe], Recipe]] = {
    "a block that the model does not have": lambda r: _with(r, 1, strength={"unet": {"down": 0.1, "nowhere": 1.0}}),
    "a rule that nobody knows": lambda r: _with(r, 1, rule="sideways"),
    "a file that is no adapter": lambda r: _with(r, 1, sha256=None, autov3=None, size=None, file="broken.safetensors"),
    "another base": lambda r: _with(r, 1, into={"unet": "transformer"}),
    "another method": lambda r: Recipe(adapters=r.adapters, method="ties"),
    "a tag of another program": lambda r: Recipe(adapters=(*r.adapters, Part(name="x", tag="<lora:x:1:lbwe=A>"))),
    "another config": lambda r: _with(r, 0, config="ab" * 32),
}


def _with(recipe: Recipe, index: int, **fields: Any) -> Recipe:
    import dataclasses

    parts = list(recipe.adapters)
    parts[index] = dataclasses.replace(parts[index], **fields)
    return dataclasses.replace(recipe, adapters=tuple(parts))


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("case", BREAKING)
def test_what_fails_leaves_the_pipeline_as_it_was(
    mixed: Any, library: Path, other: Path, tmp_path: Path, case: str, merged: bool
) -> None:
    shutil.copytree(library, tmp_path / "files")
    (tmp_path / "files" / "broken.safetensors").write_bytes(b"nothing")
    recipe = BREAKING[case](Recipe.of(mixed).without_paths())
    pipe = fresh()
    pipe.load_adapter(other / "ink.safetensors", adapter_name="old", weight=0.3)
    if merged:
        pipe.adapters.merge()
    before = state(pipe)
    with pytest.raises(DiffAdaptError):
        recipe.apply(pipe, tmp_path / "files")
    assert state(pipe) == before
    Recipe.of(mixed).apply(pipe)
    assert set(pipe.adapters.active) == {"ink", "pixel"}


def test_a_merge_that_fails_leaves_the_pipeline_as_it_was(mixed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(adapters=Recipe.of(mixed).adapters, merge=Merge(mode="auto"))
    pipe = fresh()
    before = state(pipe)
    monkeypatch.setattr(type(pipe.adapters), "merge", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("stop")))
    with pytest.raises(RuntimeError, match="stop"):
        recipe.apply(pipe)
    assert state(pipe) == before


def test_disabled_adapters_come_into_force_and_stay_out_of_it_where_it_fails(mixed: Any, tmp_path: Path) -> None:
    recipe = Recipe.of(mixed)
    mixed.adapters.disable()
    before = state(mixed)
    with pytest.raises(RecipeError, match="disabled"):
        Recipe.of(mixed)
    with pytest.raises(DiffAdaptError):
        _with(recipe, 0, strength={"unet": {"nowhere": 1.0}}).apply(mixed)
    assert state(mixed) == before
    recipe.apply(mixed)
    assert mixed.adapters.enabled


def test_what_is_in_no_file_is_named(library: Path, tmp_path: Path) -> None:
    pipe = fresh()
    pipe.load_adapter(_tensors(library), adapter_name="dict")
    with pytest.raises(RecipeError, match="'dict' is in no file"):
        Recipe.of(pipe)
    pipe = fresh()
    pipe.load_adapter(library / "ink.safetensors", adapter_name="mine", trainable=True)
    with pytest.raises(RecipeError, match="'mine' is in training"):
        Recipe.of(pipe)
    with pytest.raises(RecipeError, match="enable"):
        Recipe.of(tiny.sd())


def test_a_prompt_is_applied(library: Path) -> None:
    pipe = fresh()
    recipe = Recipe.from_prompt("a cat <lora:ink:0.5:0.25>, <lyco:pixel:1>")
    assert recipe.apply(pipe, library) == {"ink": "ink", "pixel": "pixel"}
    assert pipe.adapters.active == {"ink": {"default": 0.25, "text_encoder": 0.5}, "pixel": 1.0}
    assert recipe.apply(pipe) == {"ink": "ink", "pixel": "pixel"}  # loaded already: no folder needed
    with pytest.raises(RecipeError, match="'none'"):
        Recipe.from_prompt("<lora:none:1>").apply(pipe, library)


@pytest.mark.parametrize("source", ["//host/share/ink.safetensors", r"\\host\share\ink.safetensors"])
def test_no_other_machine_is_asked(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda self: asked.append(str(self)) or is_file(self))
    with pytest.raises(RecipeError, match="no such file"):
        Recipe(adapters=(Part(name="ink", source=source),)).apply(fresh())
    assert not any("host" in path for path in asked)


def test_names_do_not_leave_the_folder(library: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        Recipe(adapters=(Part(name="../ink", file="../ink.safetensors"),)).apply(fresh(), library / "sub")


def test_a_picture_is_made_again_to_the_bit(mixed: Any) -> None:
    from diffadapt.inject.schedule import window

    mixed.adapters.set({"ink": window(0.0, 0.5, 0.8), "pixel": MIX["pixel"]})
    recipe = Recipe.from_json(Recipe.of(mixed, seed=5, steps=4, guidance=2.0).to_json())

    def picture(pipe: Any) -> torch.Tensor:
        states = torch.randn(1, 5, tiny.WIDTH, generator=torch.Generator().manual_seed(1))
        return pipe(
            prompt_embeds=states, negative_prompt_embeds=-states, num_inference_steps=recipe.steps, height=64, width=64,
            guidance_scale=recipe.guidance, generator=torch.Generator().manual_seed(recipe.seed), output_type="latent",
        ).images  # fmt: skip

    pipe = fresh()
    plain = picture(pipe)
    recipe.apply(pipe)
    assert torch.equal(picture(pipe), picture(mixed))
    assert not torch.equal(picture(pipe), plain)

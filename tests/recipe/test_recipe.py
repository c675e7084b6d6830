"""Recipes as JSON: what is kept, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffadapt.errors import RecipeError
from diffadapt.inject import schedule
from diffadapt.recipe import Merge, Part, Recipe

HASH = "ab" * 32
FULL = Recipe(
    adapters=(
        Part(name="ink", file="ink.safetensors", source="hf://owner/name@main/ink.safetensors", sha256=HASH,
             autov3="0123456789ab", size=12, weight=0.8, strength={"unet": {"down": 0.2, "up": {"block_0": [0.1, 1]}}},
             triggers=("ink drawing",), alpha=4.0, into={"transformer": "transformer_2"}, extra={"note": [1, None]}),
        Part(name="pixel", weight=-0.5, schedule=schedule.window(0.2, 0.8)),
        Part(name="turn", strength={"unet": {"mid": schedule.points([(0, 1.0), (1, 0.2)]), "up": 0.5}}),
        Part(name="tag", tag="<lora:tag:0.5:lbw=INALL:stop=0.5>", at=3),
    ),
    prompt="a cät", negative="blurry", seed=(1 << 64) - 1, steps=20, guidance=6.5, sampler="DDIMScheduler",
    options={"rank": 8}, merge=Merge(mode="auto", names={"unet": ["ink"]}), base="owner/base",
    extra={"later": {"x": 1}},
)  # fmt: skip


def text(**fields: object) -> str:
    return json.dumps({"format": "diffadapt-recipe", "version": 1, **fields})


def part(**fields: object) -> str:
    return text(adapters=[{"name": "ink", **fields}])


def test_a_recipe_comes_back_from_its_json(tmp_path: Path) -> None:
    again = Recipe.from_json(FULL.to_json())
    assert again == FULL
    assert again.to_json() == FULL.to_json()
    assert Recipe.load(FULL.save(tmp_path / "mix.json")) == FULL


def test_defaults_are_left_out_and_unknown_fields_kept() -> None:
    assert json.loads(Recipe().to_json()) == {"format": "diffadapt-recipe", "version": 1}
    given_ = json.loads(text(adapters=[{"name": "ink", "new": [1]}], newer={"a": None}))
    assert json.loads(Recipe.from_json(json.dumps(given_)).to_json()) == given_


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ("[]", "expected an object"),
        ("{", "not JSON"),
        ("{}", "no recipe"),
        ('{"format": "diffadapt-recipe"}', "no version"),
        (text().replace("1", "2"), "version"),
        (text().replace("1", "true"), "version"),
        (text().replace("1", "1e999"), "not finite"),
        (text(seed=1.5), "seed"),
        (text(seed=1 << 64), "seed"),
        (text(seed=True), "seed"),
        (text(steps=0), "steps"),
        (text(prompt=["a"]), "prompt"),
        (text(prompt="\ud800"), "surrogate"),
        (text(guidance="7"), "guidance"),
        (text(guidance=math.nan), "not finite"),
        (text(guidance=math.inf), "not finite"),
        (text(method=3), "method"),
        (text(merge=True), "merge"),
        (text(merge={"mode": "all"}), "mode"),
        (text(adapters={}), "adapters"),
        (text(adapters=[3]), "adapters"),
        (text(adapters=[{}]), "name"),
        (text(adapters=[{"name": ""}]), "name"),
        (text(adapters=[{"name": "a"}, {"name": "a"}]), "two adapters"),
        (text(adapters=[{"name": str(i)} for i in range(300)]), "at most 256"),
        (part(weight=math.nan), "not finite"),
        (part(weight="1"), "weight"),
        (part(weight=True), "weight"),
        (part(weight=None), "weight"),
        (part(weight=10**400), "too large"),
        (part(strength={"unet": math.inf}), "not finite"),
        (part(strength={"unet": "1"}), "strength"),
        (part(strength={"unet": None}), "strength"),
        (part(sha256="xyz"), "sha256"),
        (part(sha256=HASH[:-1]), "sha256"),
        (part(tag="<lora:x:y>"), "expected a number"),
        (part(tag="x"), "no tag"),
        (part(tag="<lora:x>", weight=2), "both a tag"),
        (part(schedule={"window": [0.5]}), "schedule"),
        (part(schedule={"window": [0.5, 2]}), "window"),
        (part(schedule={"window": [0, 1], "code": "x"}), "schedule"),
        (part(schedule={"points": []}), "Points"),
        (part(schedule={"steps": ["a"]}), "step"),
        (part(schedule=[0, 1]), "schedule"),
        (part(triggers="a"), "triggers"),
        (part(into={"a": 1}), "into"),
        (text(extra={"a": 1}), None),
        ('{"format": "diffadapt-recipe", "version": 1, "seed": 1, "seed": 2}', "twice"),
        (text(x="a" * (1 << 20)), "bytes"),
        ("[" * 100_000 + "]" * 100_000, "nested"),
        (text(x=json.loads("[" * 40 + "]" * 40)), "nested"),
        (part(strength=json.loads('{"a":' * 40 + "1" + "}" * 40)), "nested"),
    ],
)  # fmt: skip
def test_what_is_no_recipe_is_refused_by_name(data: str, word: str | None) -> None:
    if word is None:  # a field named "extra" is a field that nobody knows, not ours
        assert json.loads(Recipe.from_json(data).to_json())["extra"] == {"a": 1}
        return
    with pytest.raises(RecipeError, match=word) as caught:
        Recipe.from_json(data, "mix.json")
    assert "mix.json" in str(caught.value)
    assert len(str(caught.value)) < 600


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["name", "strength", "tag", "schedule", "window", "weight", "merge", "x", "names"]),
            inner, max_size=4,
        ),
        max_leaves=20,
    ),
    st.sampled_from(["adapters", "merge", "options", "seed", "extra", "prompt", "part", "strength", "schedule"]),
)  # fmt: skip
def test_any_json_is_read_or_refused(value: object, where: str) -> None:
    data = {"part": text(adapters=[value]), "strength": part(strength=value), "schedule": part(schedule=value)}
    try:
        recipe = Recipe.from_json(data.get(where) or text(**{where: value}))
    except RecipeError:
        return
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_function_is_no_recipe() -> None:
    with pytest.raises(RecipeError, match="function"):
        Part(name="a", schedule=schedule.curve(lambda p: p))
    with pytest.raises(RecipeError, match="schedule of its own"):
        Part(name="a", strength=schedule.window(0, 0.5), schedule=schedule.window(0, 0.5)).strength_for({})


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.json"):
        Recipe.load(tmp_path / "none.json")
    with pytest.raises(RecipeError, match=r"mix\.json"):
        FULL.save(tmp_path / "none" / "mix.json")


def test_a_weight_multiplies_a_strength_also_where_no_rule_names_a_module() -> None:
    blocks = {"unet": {"down": 0.2, "up": [0.1, 0.4]}}
    assert Part(name="a", weight=0.5, strength=blocks).strength_for({}) == {
        "default": 0.5, "unet": {"down": 0.1, "up": (0.05, 0.2)},
    }  # fmt: skip
    assert Part(name="a", weight=0.5, strength={"default": 0.5}).strength_for({}) == {"default": 0.25}
    assert Part(name="a", weight=0.5).strength_for({}) == 0.5
    half = schedule.window(0, 0.5)
    assert Part(name="a", weight=0.5, schedule=half).strength_for({}) == half * 0.5
    assert Part(name="a", strength={"unet": 0.2}, schedule=half).strength_for({}) == {
        "default": half, "unet": half * 0.2,
    }  # fmt: skip


def test_a_tag_is_worked_out_for_a_pipeline() -> None:
    models = dict.fromkeys(("unet", "text_encoder", "text_encoder_2"))
    found = Part(name="a", tag="<lora:a:0.3:0.7>").strength_for(models)
    assert found == {"default": 0.7, "text_encoder": 0.3, "text_encoder_2": 0.3}
    blocks = Part(name="a", tag="<lora:a:0.5:2:lbw=1,0,0,0,1,1,1,X+0.25,0,0,0,0,0,0,0,0,0.5:x=0.5>").strength_for({})
    assert blocks["default"] == 0.5
    assert blocks["unet"]["mid"] == 1.5
    assert blocks["unet"]["default"] == 2
    timed = Part(name="a", tag="<lora:a:0.5:start=3:stop=10>")
    assert timed.strength_for({}, 20) == schedule.window(0.15, 0.5, 0.5)
    for tag, word in {
        "<lora:a:1:dyn=8>": "dyn", "<lora:a:1:lbwe=ATTN>": "lbwe", "<lora:a:1:lbw=1,2>": "block weights",
        "<lora:a:1:lbw=R,1,1,1,1,1,1,1,1,1,1,1>": "drawn", "<lora:a:1:stop=5>": "steps",
    }.items():  # fmt: skip
        with pytest.raises(RecipeError, match=word) as caught:
            Part(name="a", tag=tag).strength_for({})
        assert tag in str(caught.value)


def test_the_hash_of_nothing_is_no_hash() -> None:
    assert Part(name="a", autov3="e3b0c44298fc").autov3 is None
    assert not Part(name="a", autov3="E3B0C442").has_hash


def test_places_on_this_machine_are_left_out() -> None:
    recipe = Recipe(adapters=(Part(name="a", source="/home/somebody/a.pt"), Part(name="b", source=r"C:\somebody\b.pt")))
    assert "somebody" not in recipe.without_paths().to_json()
    assert [part.file for part in recipe.without_paths().adapters] == ["a.pt", "b.pt"]
    assert FULL.without_paths() == FULL

"""Recipes at other weights: of one part, of all at a given total; for numbers and for prompt tags."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import diffadapt
from diffadapt.errors import RecipeError
from diffadapt.inject import schedule
from diffadapt.recipe import Part, Recipe
from tests import tiny

MODELS = dict.fromkeys(("unet", "text_encoder"))
TAGGED = "<lora:a:0.3:0.6:lbw=1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0.5:start=2:note=kept>"
finite = st.floats(-100, 100).map(lambda value: round(value, 6))


def tag(text: str) -> Part:
    return Part(name="a", tag=text, at=3, triggers=("x",), extra={"later": 1})


@pytest.mark.parametrize(
    ("part", "main"),
    [
        (Part(name="a"), 1.0),
        (Part(name="a", weight=-0.4, strength={"unet": 0.2}), -0.4),
        (tag("<lora:a>"), 1.0),
        (tag("<lora:a:0.7>"), 0.7),
        (tag("<lora:a:0.3:0.6>"), 0.6),
        (tag("<lora:a:0:-0.5>"), -0.5),
        (tag("<lora:a:te=0.2>"), 0.2),
        (tag(TAGGED), 0.6),
    ],
)
def test_the_one_number_that_says_most(part: Part, main: float) -> None:
    assert part.main_weight == main
    again = part.with_weight(-1.5)
    assert again.main_weight == -1.5
    # Everything else is what it was, and the way back leads to the same part.
    back = again.with_weight(main)
    assert back.main_weight == pytest.approx(main)
    assert again.to_data().keys() | {"weight"} == part.to_data().keys() | {"weight"}
    assert (again.at, again.triggers, again.extra, again.strength) == (
        part.at,
        part.triggers,
        part.extra,
        part.strength,
    )


def test_a_weight_is_that_of_the_whole_mix() -> None:
    blocks = {"unet": {"down": 0.2, "mid": schedule.window(0, 0.5)}}
    part = Part(name="a", weight=0.5, strength=blocks, schedule=None, rule="stage", alpha=2.0)
    assert part.with_weight(2).strength_for({}) == {
        "default": 2, "unet": {"down": 0.4, "mid": schedule.window(0, 0.5, 2)},
    }  # fmt: skip
    assert part.scaled(4) == part.with_weight(2)
    timed = Part(name="a", weight=0.5, schedule=schedule.window(0, 0.5))
    assert timed.scaled(-2).strength_for({}) == schedule.window(0, 0.5, -1.0)


@pytest.mark.parametrize(
    ("before", "weight", "after"),
    [
        ("<lora:a>", 0.5, "<lora:a:0.5>"),
        ("<lora:a:0.7>", 2, "<lora:a:2>"),
        ("<lora:a:0.3:0.6>", 1.2, "<lora:a:0.6:1.2>"),
        ("<lora:a:0:0.5>", 2.0, "<lora:a:0:2>"),
        ("<lora:a:0.5:0>", 2.0, "<lora:a:0.5:2>"),  # nothing to keep a ratio to
        ("<lora:a:-0.5:0.25>", 1.0, "<lora:a:-2:1>"),
        ("<lora:a:0.5:stop=0.4>", 0, "<lora:a:0:stop=0.4>"),
        (TAGGED, 0.0, TAGGED.replace("0.3:0.6", "0:0")),
    ],
)
def test_a_tag_at_another_weight(before: str, weight: float, after: str) -> None:
    assert tag(before).with_weight(weight).tag == after


@pytest.mark.parametrize(
    ("before", "factor", "after"),
    [
        ("<lora:a>", 0.5, "<lora:a:0.5>"),
        ("<lora:a:0.5:0>", 3, "<lora:a:1.5:0>"),
        ("<lora:a:0:0.25>", -2.0, "<lora:a:0:-0.5>"),
        (TAGGED, 2.0, TAGGED.replace("0.3:0.6", "0.6:1.2")),
    ],
)
def test_a_tag_so_many_times_as_strong(before: str, factor: float, after: str) -> None:
    assert tag(before).scaled(factor).tag == after


@given(finite, finite, finite)
def test_tags_hold_every_number(te: float, unet: float, factor: float) -> None:
    part = Part(name="a", tag=f"<lora:a:{te!r}:{unet!r}>")
    found = part.scaled(factor).strength_for(MODELS)
    both = te * factor, unet * factor
    assert found == (both[0] if both[0] == both[1] else {"default": both[1], "text_encoder": both[0]})
    assert part.with_weight(factor).main_weight == factor


@pytest.mark.parametrize("part", [Part(name="a"), tag("<lora:a>"), tag("<lora:a:1:0.5>")])
@pytest.mark.parametrize("wrong", [math.nan, math.inf, "1", True, 10**400])
def test_what_is_no_weight(part: Part, wrong: object) -> None:
    with pytest.raises(RecipeError, match="weight"):
        part.with_weight(wrong)


def mix() -> Recipe:
    return Recipe(
        adapters=(
            Part(name="ink", weight=0.8, strength={"unet": {"mid": 0.5}}),
            Part(name="pixel", weight=-0.4),
            Part(name="tag", tag="<lora:tag:0.1:0.8:stop=0.5>", at=1),
            Part(name="off", weight=0.0),
        ),
        prompt="a cat", seed=3, steps=4,
    )  # fmt: skip


@pytest.mark.parametrize("total", [1.0, 0.25, 3])
def test_weights_sum_to_a_total(total: float) -> None:
    before, after = mix(), mix().with_total(total)
    assert sum(abs(part.main_weight) for part in after.adapters) == pytest.approx(total)
    factor = total / 2.0
    for old, new in zip(before.adapters, after.adapters, strict=True):
        assert new.main_weight == pytest.approx(factor * old.main_weight)
        assert (new.name, new.strength, new.at) == (old.name, old.strength, old.at)
    assert after.adapters[2].mention.te == pytest.approx(factor * 0.1)
    assert (after.prompt, after.seed, after.steps) == (before.prompt, before.seed, before.steps)
    again = after.with_total(total)
    assert [part.main_weight for part in again.adapters] == pytest.approx([p.main_weight for p in after.adapters])
    assert Recipe.from_json(after.to_json()) == after


def test_nothing_to_scale_stays() -> None:
    for recipe in (Recipe(prompt="a cat"), Recipe(adapters=(Part(name="off", weight=0.0),))):
        assert recipe.with_total(1.0) is recipe


@pytest.mark.parametrize("total", [0.0, -1.0, math.nan, math.inf])
def test_a_total_is_a_number_above_nothing(total: float) -> None:
    with pytest.raises(RecipeError, match="total"):
        mix().with_total(total)


def test_a_total_is_in_force(library) -> None:  # type: ignore[no-untyped-def]
    """Three times an adapter at a constant total is the adapter once."""
    part = Part(name="ink", file="ink.safetensors", weight=0.7)
    alone, thrice = (diffadapt.enable(tiny.sd()) for _ in range(2))
    Recipe(adapters=(part,)).with_total(1.0).apply(alone, library)
    many = tuple(Part(name=f"ink_{i}", file="ink.safetensors", weight=0.7) for i in range(3))
    Recipe(adapters=many).with_total(1.0).apply(thrice, library)
    assert alone.adapters.strengths == {"ink": 1.0}
    assert sum(thrice.adapters.strengths.values()) == pytest.approx(1.0)
    truth, base = tiny.run(alone.unet), tiny.run(tiny.unet())
    assert tiny.relative(tiny.run(thrice.unet), truth, base) < 1e-5
    assert not torch.equal(truth, base)

"""Rows and prompts of the mixer: the same mix in both, whoever was edited last; no pipeline is needed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffadapt.apps.mixer import mix
from diffadapt.apps.mixer.cards import Card
from diffadapt.apps.mixer.library import Library
from diffadapt.apps.mixer.mix import Row
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.errors import RecipeError
from diffadapt.recipe import Mention, parse_prompt

EMPTY = Shelf(Library(()))

weights = st.one_of(st.floats(-1000, 1000, allow_nan=False), st.integers(-5, 5), st.sampled_from([0.0, 0.1, 1e-9]))
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda text: text.strip())
vectors = st.lists(st.floats(-10, 10, allow_nan=False), min_size=2, max_size=9).map(lambda v: ",".join(map(repr, v)))
blocks = st.one_of(st.just(""), st.sampled_from(["ALL", "FIRST", "INALL", "1,R,U", "1,X+0.2,0"]), vectors)
windows = st.tuples(st.floats(0, 1), st.floats(0, 1)).filter(lambda pair: pair[0] != pair[1]).map(sorted)
tags = st.one_of(
    st.just(""), st.builds(
        lambda kind, dyn, x, other: str(Mention("n", kind=kind, dyn=dyn, x=x, lbwe=None, other=other)),
        st.sampled_from(["lora", "lyco"]), st.one_of(st.none(), st.integers(1, 99)),
        st.one_of(st.none(), st.floats(-2, 2)), st.sampled_from([(), (("foo", "bar"),)]),
    ),
)  # fmt: skip
rows_ = st.builds(
    lambda name, weight, te, blocks, window, triggers, on, tag: Row(
        "", name, on, weight, te, blocks, *window, tuple(triggers), tag
    ),
    words, weights, st.one_of(st.none(), weights), blocks, st.one_of(st.just((0.0, 1.0)), windows),
    st.lists(words, max_size=2), st.booleans(), tags,
)  # fmt: skip
mixes = st.lists(rows_, max_size=6, unique_by=lambda row: row.name)
prompts = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=40)


def meaning(row: Row) -> dict[str, Any]:
    """What a row does to the picture, however it is written."""
    said = row.to_part().mention
    return {
        "name": row.name, "weight": row.weight, "te": row.weight if row.te is None else row.te, "lbw": said.lbw,
        "start": said.start, "stop": said.stop, "kind": said.kind, "dyn": said.dyn, "x": said.x, "other": said.other,
    }  # fmt: skip


@given(rows=mixes, prompt=prompts)
@settings(deadline=None, max_examples=80)
def test_a_prompt_that_rows_wrote_changes_no_row(rows: list[Row], prompt: str) -> None:
    text = mix.to_prompt(rows, prompt)
    assert mix.with_prompt(rows, text, EMPTY) == rows
    assert mix.to_prompt(rows, text) == text
    assert parse_prompt(text)[0].strip() == prompt.strip()


@given(rows=mixes, prompt=prompts)
@settings(deadline=None, max_examples=80)
def test_a_prompt_says_all_that_its_rows_do(rows: list[Row], prompt: str) -> None:
    """Rows that are made of nothing but the text do what the rows do that wrote it."""
    found = mix.with_prompt([], mix.to_prompt(rows, prompt), EMPTY)
    assert [meaning(row) for row in found] == [meaning(row) for row in rows if row.on]


@given(rows=mixes, prompt=prompts, places=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40)
def test_tags_stay_where_they_stand(rows: list[Row], prompt: str, places: Any) -> None:
    """Another weight leaves the text around a tag, and the place of the tag, as they were."""
    on = [row for row in rows if row.on]
    text = mix.to_prompt(on, prompt)
    clean, said = parse_prompt(text)
    changed = [replace(row, weight=0.25, te=None) for row in on]
    again, now = parse_prompt(mix.to_prompt(changed, text))
    assert (again, [one.at for one in now]) == (clean, [one.at for one in said])
    assert all(one.te == one.rest == 0.25 for one in now)


def test_a_tag_that_is_removed_switches_its_row_off(shelf_of: Callable[..., Shelf]) -> None:
    shelf = shelf_of(Card("a/ink", "ink", trigger_words=("inky", "wet")), Card("glow", "glow"))
    ink = Row("a/ink", "ink", weight=0.7, te=0.2, blocks="1,0.5", start=0.2, stop=0.8, triggers=("inky",))
    glow = Row("glow", "glow", weight=0.4)
    found = mix.with_prompt([ink, glow], "a star <lora:glow:0.4>", shelf)
    assert found == [replace(ink, on=False), glow]
    back = mix.with_prompt(found, "a star <lora:glow:0.4> <lora:ink:0.2:0.7:lbw=1,0.5:start=0.2:stop=0.8>", shelf)
    assert back == [ink, glow]


def test_a_row_that_is_off_is_not_in_the_prompt_and_not_in_the_recipe() -> None:
    rows = [Row("", "ink", on=False), Row("", "glow", weight=0.5)]
    assert mix.to_prompt(rows, "a <lora:ink> star") == "a  star <lora:glow:0.5>"
    recipe = mix.to_recipe(rows, "a <lora:ink> star", {})
    assert [part.name for part in recipe.adapters] == ["glow"]
    assert recipe.prompt == "a star"


def test_a_changed_tag_changes_its_row_and_keeps_what_it_does_not_say(shelf_of: Callable[..., Shelf]) -> None:
    shelf = shelf_of(Card("a/ink", "ink", trigger_words=("inky", "wet")), Card("b/ink", "ink"))
    row = Row("b/ink", "ink", weight=0.7, triggers=("inky",), part={"sha256": "0" * 64, "rule": "scaled"})
    (found,) = mix.with_prompt([row], "a star <lora:ink:0.3:0.9>", shelf)
    assert (found.weight, found.te, found.id) == (0.9, 0.3, "b/ink")
    assert (found.triggers, found.part) == (("inky",), row.part)


def test_a_row_whose_file_is_gone_can_still_be_edited() -> None:
    row = Row("sub/ink.safetensors", "ink", weight=0.7)
    (found,) = mix.with_prompt([row], "a star <lora:ink:0.3>", EMPTY)
    assert (found.id, found.weight) == ("", 0.3)


def test_a_new_tag_is_the_card_of_its_name(shelf_of: Callable[..., Shelf]) -> None:
    shelf = shelf_of(Card("sub/Ink.safetensors", "Ink", trigger_words=("inky", "wet")), Card("b.pt", "b"))
    ink, by_id, unknown = mix.with_prompt([], "<lora:ink> <lora:sub/Ink:0.5> <lora:mist>", shelf)
    assert (ink.id, ink.triggers) == ("sub/Ink.safetensors", ("inky", "wet"))
    assert (by_id.id, by_id.weight) == ("sub/Ink.safetensors", 0.5)
    assert (unknown.id, unknown.name, unknown.on) == ("", "mist", True)


def test_new_tags_follow_the_rows_that_are_there() -> None:
    rows = [Row("", "b"), Row("", "a")]
    found = mix.with_prompt(rows, "<lora:new> <lora:a> <lora:b>", EMPTY)
    assert [row.name for row in found] == ["b", "a", "new"]


@pytest.mark.parametrize("te", [None, 0.5, 0.25])
def test_whole_steps_stay_steps_until_the_row_has_parts_of_the_run(te: float | None) -> None:
    text = f"a star <lora:ink:{0.5 if te is None else te}{'' if te is None else ':0.5'}:start=3:stop=10>"
    (row,) = rows = mix.with_prompt([], text, EMPTY)
    assert (row.start, row.stop) == (0.0, 1.0)
    assert (row.to_part().mention.start, row.to_part().mention.stop) == (3, 10)
    assert mix.with_prompt(rows, mix.to_prompt(rows, "a star"), EMPTY) == rows
    said = replace(row, start=0.25).to_part().mention
    assert (said.start, said.stop) == (0.25, None)


@given(values=st.lists(st.floats(-2, 2, allow_nan=False), min_size=2, max_size=12))
@settings(deadline=None, max_examples=40)
def test_block_weights_are_the_prompts_to_the_bit(values: list[float]) -> None:
    said = Mention("ink", 0.3, lbw=tuple(values))
    (row,) = mix.with_prompt([], str(said), EMPTY)
    assert row.to_part().mention.lbw == said.lbw


@pytest.mark.parametrize("text", ["<lora:ink:x>", "<hypernet:ink>", "a " * 40_000, "<lora:a:1:1:1:1>"])
def test_a_prompt_that_cannot_be_followed_is_one_sentence(text: str) -> None:
    with pytest.raises(RecipeError) as caught:
        mix.with_prompt([], text, EMPTY)
    assert len(str(caught.value)) < 400


BAD: list[tuple[Any, str]] = [
    (5, "expected an object"),
    ("ink", "expected an object"),
    ({}, "lacks id and name"),
    ({"id": "a"}, "lacks name"),
    ({"weight": "strong"}, "weight"),
    ({"weight": True}, "weight"),
    ({"weight": None}, "weight"),
    ({"weight": math.nan}, "weight"),
    ({"weight": math.inf}, "weight"),
    ({"weight": 1e9}, "weight"),
    ({"te": "1"}, "te"),
    ({"te": -math.inf}, "te"),
    ({"start": 0.5, "stop": 0.5}, "acts from"),
    ({"start": 0.9, "stop": 0.1}, "acts from"),
    ({"start": -0.1}, "acts from"),
    ({"stop": 1.1}, "acts from"),
    ({"start": None}, "start"),
    ({"name": 5}, "text"),
    ({"id": ["a"], "name": "ink"}, "text"),
    ({"blocks": 1}, "text"),
    ({"tag": None}, "text"),
    ({"blocks": "1," * 4096}, "text"),
    ({"triggers": [5]}, "text"),
    ({"triggers": 5}, "triggers"),
    ({"triggers": "words"}, "triggers"),
    ({"triggers": {"a": 1}}, "triggers"),
    ({"part": "file"}, "part"),
    ({"part": ["file"]}, "part"),
    ({"on": "yes"}, "on"),
    ({"blocks": "FIRST:0.5"}, "blocks"),
    ({"blocks": "1>2"}, "blocks"),
]


@pytest.mark.parametrize(("data", "word"), BAD, ids=lambda value: str(value)[:40])
def test_rows_of_bad_data_are_refused_with_a_reason(data: Any, word: str) -> None:
    wrong = {"id": "a", "name": "ink", **data} if isinstance(data, dict) and "id" not in data and data else data
    with pytest.raises(RecipeError, match=word) as caught:
        mix.rows_of([wrong])
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("data", [None, "rows", 5, {"a": 1}, [{"id": "", "name": "a"}] * 65])
def test_what_is_no_list_of_rows_is_refused(data: Any) -> None:
    with pytest.raises(RecipeError, match="at most 64 rows"):
        mix.rows_of(data)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"name": ""}, "name"), ({"tag": "<lora:"}, "no tag"), ({"blocks": "1,nan", "part": {"size": "x"}}, "size"),
        ({"part": {"sha256": 5}}, "sha256"), ({"part": {"strength": {"unet": "x"}}}, "strength"),
        ({"part": {"schedule": {"no": 1}}}, "schedule"),
    ],
)  # fmt: skip
def test_rows_that_make_no_recipe_are_refused(fields: dict[str, Any], word: str) -> None:
    (row,) = mix.rows_of([{"id": "", "name": "ink", **fields}])
    with pytest.raises(RecipeError, match=word):
        mix.to_recipe([row], "a star", {})


@given(rows=mixes)
@settings(deadline=None, max_examples=40)
def test_rows_are_plain_data_and_back(rows: list[Row]) -> None:
    assert mix.rows_of([row.to_data() for row in rows]) == rows


def test_a_card_that_is_added_again_has_a_name_of_its_own() -> None:
    card = Card("sub/ink.safetensors", "ink", trigger_words=("inky",))
    first = mix.row_of_card(card, [])
    second = mix.row_of_card(card, [first])
    assert [(row.id, row.name) for row in (first, second)] == [(card.id, "ink"), (card.id, "ink_2")]
    assert second.triggers == ("inky",)

"""Prompt tags: what A1111 and sd-webui-lora-block-weight take for one, what is refused, and the way back."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffadapt.errors import RecipeError
from diffadapt.recipe import Mention, Recipe, parse_prompt, write_prompt


def only(tag: str) -> Mention:
    clean, (mention,) = parse_prompt(tag)
    assert clean == ""
    return mention


@pytest.mark.parametrize(
    ("tag", "mention"),
    [
        ("<lora:ink>", Mention("ink")),
        ("<lora:ink:0.8>", Mention("ink", 0.8)),
        ("<lora:ink:-.5>", Mention("ink", -0.5)),
        ("<lora: my ink : 1 >", Mention("my ink")),
        ("<lora:ink:0.3:0.7>", Mention("ink", 0.3, 0.7)),
        ("<lora:ink:0.3:0.7:8>", Mention("ink", 0.3, 0.7, dyn=8)),
        ("<lora:ink:te=0.3:unet=0.7:dyn=8>", Mention("ink", 0.3, 0.7, dyn=8)),
        ("<lora:ink:0.8:te=0.3>", Mention("ink", 0.3)),  # A1111: what has no number of its own follows te
        ("<lyco:ink:0.8>", Mention("ink", 0.8, kind="lyco")),
        ("<LORA:ink:0.8>", Mention("ink", 0.8)),
        ("<lora:ink:1:lbw=INALL>", Mention("ink", lbw="INALL")),
        ("<lora:ink:1:INALL>", Mention("ink", lbw="INALL")),
        ("<lora:ink:1:w=1,0,.5>", Mention("ink", lbw=(1.0, 0.0, 0.5))),
        ("<lora:ink:1:0.5:lbw=1,R,X+0.2:x=0.4>", Mention("ink", 1.0, 0.5, lbw="1,R,X+0.2", x=0.4)),
        ("<lora:ink:1:IN02:ATTN>", Mention("ink", lbw="IN02", lbwe="ATTN")),
        ("<lora:ink:1:lbw=IN02:lbwe=ATTN>", Mention("ink", lbw="IN02", lbwe="ATTN")),
        ("<lora:ink:1:start=3:stop=10>", Mention("ink", start=3, stop=10)),
        ("<lora:ink:1:step=3-10>", Mention("ink", start=3, stop=10)),
        ("<lora:ink:1:start=0:end=0.25>", Mention("ink", start=0, stop=0.25)),
        ("<lora:ink:1:stop=40%>", Mention("ink", stop=0.4)),
        ("<lora:ink:1:foo=bar>", Mention("ink", other=(("foo", "bar"),))),
        (r'<lora:"a: \"b\" > \\c":0.8>', Mention('a: "b" > \\c', 0.8)),
        ('<lora:"ink"x:0.8>', Mention('"ink"x', 0.8)),
        (r"<lora:sub\ink:0.8>", Mention(r"sub\ink", 0.8)),
    ],
)
def test_a_tag_is_read_as_the_web_ui_reads_it(tag: str, mention: Mention) -> None:
    assert only(tag) == mention
    assert only(str(mention)) == mention


@pytest.mark.parametrize("text", ["a < b > c", "<lora>", "< lora:ink:1>", "<lora:>", "<cat-toy> on a mat", "<lora:ink"])
def test_what_the_web_ui_leaves_as_text_stays(text: str) -> None:
    assert parse_prompt(text) == (text, ())


@pytest.mark.parametrize(
    ("tag", "word"),
    [
        ("<hypernet:agm:1.1>", "hypernetwork"),
        ("<hypernetwork:agm>", "hypernetwork"),
        ("<segment:face>", "unknown kind"),
        ("<lora::0.8>", "names no adapter"),
        ("<lora: :0.8>", "names no adapter"),
        ("<lora:ink:strong>", "expected a number"),
        ("<lora:ink:nan>", "expected a number"),
        ("<lora:ink:1_0>", "expected a number"),
        ("<lora:ink:1e999>", "expected a number"),
        ("<lora:ink:1:unet=inf>", "unet"),
        ("<lora:ink:1:lbw=IN02:OUT>", "expected a number"),
        ("<lora:ink:1:1:1:1>", "at most three"),
        ("<lora:ink:1:dyn=x>", "dyn"),
        ("<lora:ink:1:start=1.5>", "start"),
        ("<lora:ink:1:stop=140%>", "stop"),
        ("<lora:ink:1:step=5>", "step"),
    ],
)
def test_a_tag_that_cannot_be_followed_is_named(tag: str, word: str) -> None:
    with pytest.raises(RecipeError, match=word) as caught:
        parse_prompt(f"a cat {tag}")
    assert tag in str(caught.value)


def test_the_text_around_tags_stays_and_places_are_kept() -> None:
    text = "a cat, <lora:ink:0.8>, on a <lora:mat:1:0.5>mat\n(x:1.2) \\(y\\)"
    clean, mentions = parse_prompt(text)
    assert clean == "a cat, , on a mat\n(x:1.2) \\(y\\)"
    assert [mention.at for mention in mentions] == [7, 14]
    assert write_prompt(clean, mentions) == text
    assert write_prompt("a cat", [Mention("ink", 0.8)]) == "a cat<lora:ink:0.8>"


def test_a_prompt_that_holds_a_tag_is_not_written() -> None:
    with pytest.raises(RecipeError, match="another prompt"):
        write_prompt("a <lora:cat:1>", [])
    with pytest.raises(RecipeError, match="another prompt"):
        write_prompt("a", [Mention("ink", lbw="IN:0.5")])


def test_a_long_hostile_prompt_costs_no_time() -> None:
    start = time.perf_counter()
    for piece in ("<lora:", '<a:"', "<", "<lora:x:1:", '<lora:"\\'):
        parse_prompt((piece * 65_536)[:65_536])
    assert time.perf_counter() - start < 60  # quadratic would be many minutes
    with pytest.raises(RecipeError, match="characters"):
        parse_prompt("a" * 65_537)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
weights = st.floats(-100, 100, allow_nan=False).map(float)
moments = st.one_of(st.none(), st.integers(0, 1000), st.floats(0, 1))
presets = st.from_regex(r"[A-Z]{1,5}[0-9]{0,2}", fullmatch=True)
mentions = st.builds(
    Mention,
    name=words.filter(lambda name: name.strip() != ""),
    te=weights,
    unet=st.none() | weights,
    kind=st.sampled_from(["lora", "lyco"]),
    dyn=st.none() | st.integers(0, 999),
    lbw=st.none() | presets | st.lists(weights, min_size=1, max_size=26).map(tuple),
    lbwe=st.none() | presets,
    x=st.none() | weights,
    start=moments,
    stop=moments,
    other=st.lists(st.tuples(st.sampled_from(["foo", "bar"]), presets), unique_by=lambda p: p[0]).map(tuple),
)
prompts = st.text(st.characters(exclude_characters="<>", exclude_categories=["Cs"]), max_size=40)


@given(prompts, st.lists(st.tuples(mentions, st.integers(0, 40)), max_size=4))
def test_what_is_written_is_read_back(prompt: str, placed: list[tuple[Mention, int]]) -> None:
    placed.sort(key=lambda pair: pair[1])
    given_ = [replace(mention, at=min(at, len(prompt))) for mention, at in placed]
    text = write_prompt(prompt, given_)
    clean, found = parse_prompt(text)
    assert (clean, list(found)) == (prompt, given_)
    assert [m.at for m in found] == [m.at for m in given_]
    recipe = Recipe.from_prompt(text)
    assert recipe.to_prompt() == text
    assert Recipe.from_json(recipe.to_json()) == recipe


@given(st.text(max_size=200) | st.from_regex(r"(<\w{0,6}:?[^<]{0,12}>?){0,6}", fullmatch=True))
def test_any_text_is_read_or_refused_by_name(text: str) -> None:
    try:
        clean, found = parse_prompt(text)
    except RecipeError:
        return
    assert len(clean) <= len(text)
    if not found:
        assert clean == text

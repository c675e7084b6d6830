"""The studio: one pipeline for everybody, and each gets the picture of their own mix."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from diffadapt.apps import proof
from diffadapt.apps.mixer import mix
from diffadapt.apps.mixer import studio as studios
from diffadapt.apps.mixer.mix import Row
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.apps.mixer.studio import Cancelled, Drawn, Request, Step, Studio, embedded, loaded
from diffadapt.errors import DiffAdaptError, RecipeError, SourceError
from diffadapt.recipe import Recipe
from diffadapt.shapes import index
from tests.apps.conftest import PROMPT, Drawing, row

MIXES = [
    [row("outline", 0.8), row("stripes", 0.5), row("zibo", 0.6)],
    [row("stripes", 0.7), row("outline", 0.9)],
    [row("zibo", 0.3, te=0.7), row("stripes", 0.4, blocks="FIRST"), row("dusk", 0.5, stop=0.5)],
]


def data(drawn: Drawn) -> bytes:
    return drawn.picture.tobytes()


@pytest.fixture(scope="module")
def alone() -> Drawing:
    """Another pipeline, whose stack a test may clear: what everybody's mix is without the others."""
    studio, library = embedded("unet")
    library.scan(wait=True)
    return Drawing(studio, Shelf(library))


def test_another_weight_loads_nothing(draw: Drawing, studio: Studio) -> None:
    first = draw(row("glow", 0.4), row("frame", 0.5))
    loads = studio.loads
    second = draw(row("glow", 1.0), row("frame", -0.5, te=0.1))
    third = draw(row("glow", 0.4), row("frame", 0.5))
    assert studio.loads == loads
    assert data(first) == data(third) != data(second)


def test_live_and_merged_agree(draw: Drawing, studio: Studio) -> None:
    rows = [row("glow", 0.6), row("stripes", 0.4), row("duotone", 0.5)]
    before = proof.fingerprints(studio.pipeline)
    bare, live = draw(), draw(*rows)
    merged = draw(*rows, merged=True)
    assert studio.pipeline.adapters.merged
    assert proof.difference(live.picture, merged.picture) <= proof.AGREE
    assert proof.difference(live.picture, bare.picture) > 10
    assert merged.recipe.merge is not None
    assert data(draw(*rows, merged=True)) == data(merged)
    assert data(draw(*rows)) == data(live)
    assert data(draw()) == data(bare)
    assert proof.fingerprints(studio.pipeline) == before


def test_other_methods_make_one_adapter(draw: Drawing, studio: Studio) -> None:
    rows = [row("outline", 0.6), row("frame", 0.8)]
    options = {"method": "ties", "options": {"rank": 4, "density": 0.5}}
    first = draw(*rows, **options)
    (active,) = studio.pipeline.adapters.active
    loads = studio.loads
    assert data(draw(*rows, **options)) == data(first)
    assert [*studio.pipeline.adapters.active] == [active]
    assert studio.loads == loads
    assert data(first) != data(draw(*rows))
    assert proof.difference(draw(*rows, **options, merged=True).picture, first.picture) <= proof.AGREE
    with pytest.raises(DiffAdaptError, match="by block"):
        draw(replace(rows[0], blocks="FIRST"), rows[1], **options)
    assert (first.recipe.method, first.recipe.options) == ("ties", {"rank": 4, "density": 0.5})


def test_steps_and_rough_pictures_are_told(draw: Drawing) -> None:
    seen: list[Step] = []
    found = draw.of(draw.recipe([row("glow")], steps=4), seen=seen.append)
    assert [(step.done, step.of) for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert seen[-1].picture is None  # the finished one is about to come
    for step in seen[:-1]:
        assert isinstance(step.picture, Image.Image)
        assert len(set(step.picture.convert("RGB").getdata())) > 20, step
    assert found.picture.size == (64, 64)
    assert 0 <= found.mixing < found.seconds


def test_a_run_that_is_stopped_leaves_the_pipeline_usable(draw: Drawing, studio: Studio) -> None:
    recipe = draw.recipe([row("glow", 0.7)], steps=4)
    whole = draw.of(recipe)
    seen: list[Step] = []
    with pytest.raises(Cancelled):
        draw.of(recipe, seen=seen.append, stop=lambda: len(seen) == 2)
    assert len(seen) == 2
    assert not studio.lock._is_owned()  # type: ignore[attr-defined]
    assert data(draw.of(recipe)) == data(whole)


def test_a_stream_that_is_closed_stops_its_run(draw: Drawing, studio: Studio) -> None:
    wanted = Request(draw.recipe([row("glow", 0.7)], steps=50))
    events = studio.stream(wanted, lambda: False)
    first = next(events)
    assert isinstance(first, Step)
    assert (first.done, first.of) == (1, 50)
    events.close()
    assert not any(thread.name == "drawing" for thread in threading.enumerate())
    stopped = studio.stream(wanted, lambda: True)
    with pytest.raises(Cancelled):
        list(stopped)
    *steps, drawn = studio.stream(replace(wanted, recipe=draw.recipe([row("glow", 0.7)])), lambda: False)
    assert len(steps) == 2
    assert isinstance(drawn, Drawn)
    assert data(drawn) == data(draw(row("glow", 0.7)))


def failing(draw: Drawing, tmp_path: Path) -> Iterator[tuple[str, Recipe]]:
    """Recipes that cannot be had, and a word of why."""
    good = [row("glow", 0.3), row("frame", 0.2)]
    yield "not done here", draw.recipe([*good, row("dusk", tag="<lora:n:1:dyn=4>")])
    yield "follows the denoising", draw.recipe([*good, row("dusk", stop=0.5)], merged=True)
    yield "block weights", draw.recipe([*good, row("dusk", blocks="1,2,3")])
    yield "no method", draw.recipe(good, method="nonsense")
    yield "counts steps", replace(draw.recipe([*good, row("dusk", tag="<lora:n:1:start=2>")]), steps=None)
    gone = draw.recipe([*good, row("dusk")])
    lost = replace(gone.adapters[2], source=str(tmp_path / "lost.safetensors"))
    yield "lost.safetensors", replace(gone, adapters=(*gone.adapters[:2], lost))
    other = replace(gone.adapters[2], source=str(index.DATA / "adapters" / "dit" / "glow.safetensors"))
    yield "glow.safetensors", replace(gone, adapters=(*gone.adapters[:2], other))
    noise = tmp_path / "noise.safetensors"
    noise.write_bytes(bytes(range(256)))
    yield "noise.safetensors", replace(gone, adapters=(replace(other, source=str(noise)),))


def test_a_mix_that_fails_leaves_the_stack_as_it_was(draw: Drawing, studio: Studio, tmp_path: Path) -> None:
    stack = studio.pipeline.adapters
    stack.clear()
    was = draw(row("outline", 0.8, blocks="FIRST"), row("glow", 0.4, stop=0.5))
    before = stack.names, dict(stack.strengths), stack.merged
    for word, recipe in failing(draw, tmp_path):
        with pytest.raises(DiffAdaptError, match=word) as caught:
            studio.draw(Request(recipe))
        assert (stack.names, dict(stack.strengths), stack.merged) == before, word
        assert str(tmp_path) not in str(caught.value)
    assert data(draw(row("outline", 0.8, blocks="FIRST"), row("glow", 0.4, stop=0.5))) == data(was)


def test_few_adapters_stay_loaded(draw: Drawing, studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studios, "HELD", 3)
    stack = studio.pipeline.adapters
    stack.clear()

    def bring(*names: str, **settings: bool) -> None:
        with studio.mixed(draw.recipe([row(name, 0.2) for name in names], **settings)) as found:
            assert list(found) == list(names)

    for name in ("glow", "frame", "outline"):
        bring(name)
    assert stack.names == ("glow", "frame", "outline")
    bring("glow")
    bring("dusk")
    assert set(stack.names) == {"glow", "outline", "dusk"}  # frame was not used for longest
    four = ("glow", "frame", "dusk", "zibo")
    bring(*four, merged=True)
    assert set(stack.names) == set(four)  # a mix may need more
    loads = studio.loads
    bring(*four)
    assert studio.loads == loads
    bring("outline", merged=True)
    assert len(stack.names) == 3


def test_everybody_gets_the_picture_of_their_own_mix(draw: Drawing, studio: Studio, alone: Drawing) -> None:
    """To the byte, whatever others drew before, in whatever order their adapters came onto the stack."""
    mine = []
    for rows in MIXES:
        alone.studio.pipeline.adapters.clear()
        mine.append(data(alone(*rows)))
    studio.pipeline.adapters.clear()
    for number in (0, 1, 2, 0):
        assert data(draw(*MIXES[number])) == mine[number], number
    draw(*MIXES[0], merged=True)
    assert data(draw(*MIXES[1])) == mine[1]


def test_people_at_the_same_time_do_not_mix_their_mixes(draw: Drawing) -> None:
    mixes = MIXES[:2]
    alone = [data(draw(*rows)) for rows in mixes]
    found: dict[int, bytes] = {}

    def work(number: int) -> None:
        found[number] = data(draw(*mixes[number]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(mixes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict(enumerate(alone))


def test_what_is_asked_for_is_what_is_drawn(draw: Drawing, studio: Studio) -> None:
    recipe = draw.recipe([row("glow")])
    base = data(draw.of(recipe))
    for other in (
        {"seed": 4}, {"steps": 3}, {"guidance": 7.0}, {"negative": "a red star"}, {"prompt": "a green circle"},
    ):  # fmt: skip
        assert data(draw.of(replace(recipe, **other))) != base, other
    assert studio.draw(Request(recipe, 32, 48)).picture.size == (32, 48)
    words = draw(row("zibo", triggers=("zibo",)))
    assert words.recipe.worded == f"{PROMPT}, zibo"
    assert data(words) == data(draw.of(replace(draw.recipe([row("zibo")]), prompt=f"{PROMPT}, zibo")))


def test_a_picture_comes_with_what_makes_it_again(draw: Drawing, shelf: Shelf) -> None:
    found = draw(row("glow", 0.3), row("dusk", 0.5, blocks="LAST", start=0.5), guidance=4.0, negative="blue")
    recipe = Recipe.from_json(found.recipe.to_json())
    assert recipe == found.recipe
    assert "/" not in "".join(part.file or "" for part in recipe.adapters)
    assert all(part.sha256 and part.size and part.source is None for part in recipe.adapters)
    assert (recipe.base, recipe.sampler) == ("unet", type(draw.studio.pipeline.scheduler).__name__)
    assert data(draw.of(recipe)) == data(found)
    rows, missing = mix.from_recipe(recipe, shelf)
    assert missing == []
    again = mix.to_recipe(rows, recipe.prompt, {"seed": 3, "steps": 2, "guidance": 4.0, "negative": "blue"})
    assert data(draw.of(again)) == data(found)


@pytest.mark.parametrize("size", [{"width": 0}, {"width": 12}, {"height": 4096}, {"height": -8}, {"width": 1 << 40}])
def test_sizes_that_no_picture_has_are_refused(size: dict[str, int]) -> None:
    with pytest.raises(RecipeError, match="multiple of 8 from 16 to 2048"):
        Request(Recipe(), **size)


def test_the_other_embedded_pipeline() -> None:
    studio, library = embedded("dit")
    library.scan(wait=True)
    draw, seen = Drawing(studio, Shelf(library)), []
    rows = [Row("glow", "glow", weight=0.5, blocks="FIRST"), Row("dusk", "dusk", weight=0.4)]
    live, merged = draw.of(draw.recipe(rows), seen=seen.append), draw(*rows, merged=True)
    assert proof.difference(live.picture, merged.picture) <= proof.AGREE
    assert data(live) != data(draw())
    assert seen[0].picture is not None


def test_a_pipeline_of_a_folder(tmp_path: Path) -> None:
    studio, library = loaded(str(index.DATA / "unet"), [index.DATA / "adapters" / "unet"])
    library.scan(wait=True)
    shelf = Shelf(library)
    assert (studio.title, studio.kind) == ("unet", "StableDiffusionPipeline")
    assert {shelf.fit(card).level for card in shelf.cards()} == {"green"}
    drawing = Drawing(studio, shelf)
    rows = [mix.row_of_card(shelf.card("dusk/adapter_model.safetensors"), [])]
    assert rows[0].name == "dusk"
    assert data(drawing(*rows)) != data(drawing())
    for nothing in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match="no pipeline of Diffusers"):
            loaded(str(nothing), [])

"""What one session sees: the library and its own uploads; and no other way from a recipe to a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from diffadapt.apps.mixer import mix, session
from diffadapt.apps.mixer.cards import Fit
from diffadapt.apps.mixer.library import Library
from diffadapt.apps.mixer.mix import Row
from diffadapt.apps.mixer.session import Session, Sessions
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.apps.mixer.studio import Studio
from diffadapt.errors import RecipeError, SourceError
from diffadapt.recipe import Part, Recipe
from diffadapt.recipe.capture import pinned
from tests.apps import files
from tests.apps.conftest import Drawing


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory, studio: Studio) -> Library:
    folder = tmp_path_factory.mktemp("loras")
    for pipeline in ("unet", "dit"):
        (folder / pipeline).mkdir()
        for name in ("glow", "frame", "stripes"):
            shutil.copyfile(files.adapters(pipeline)[name], folder / pipeline / f"{name.title()}.safetensors")
    files.troubles(folder)
    found = Library([folder], studio.pipeline)
    found.scan(wait=True)
    return found


@pytest.fixture
def sessions() -> Iterator[Sessions]:
    found = Sessions()
    yield found
    found.close_all()
    assert not found.folder.exists()


def test_cards_that_fit_come_first_then_by_name(library: Library) -> None:
    shelf = Shelf(library)
    cards = shelf.cards()
    levels = [shelf.fit(card).level for card in cards]
    assert levels == sorted(levels, key=["green", "amber", "grey", "red"].index)
    assert [card.id for card in cards[:3]] == [f"unet/{name}.safetensors" for name in ("Frame", "Glow", "Stripes")]
    assert len(cards) == 6 + len(files.TROUBLES)


def test_a_search_leaves_what_has_every_word(library: Library) -> None:
    shelf = Shelf(library)
    assert {card.id for card in shelf.cards("GLOW")} == {"unet/Glow.safetensors", "dit/Glow.safetensors"}
    assert [card.id for card in shelf.cards("glow  unet/")] == ["unet/Glow.safetensors"]
    assert shelf.cards("glow nothing-of-that") == []
    dora = shelf.cards(algorithm="dora")
    assert {card.id for card in dora} == {"unet/Glow.safetensors", "dit/Glow.safetensors"}
    assert shelf.cards(algorithm="dor") == []
    family = shelf.card("unet/Glow.safetensors").family
    assert family in shelf.families()
    assert {card.family for card in shelf.cards(family=family)} == {family}
    fitting = shelf.cards(only_fitting=True)
    assert {card.id for card in fitting} >= {"unet/Glow.safetensors"}
    assert all(shelf.fit(card).level in ("green", "amber") for card in fitting)
    assert "dora" in shelf.algorithms()
    assert not any(", " in one or not one for one in shelf.algorithms())


def test_a_name_means_its_id_first_and_then_what_fits(library: Library) -> None:
    shelf = Shelf(library)
    found = {name: shelf.named(name) for name in ("dit/Glow", "Glow", "glow", "dit/glow.safetensors", "nothing")}
    assert {name: card and card.id for name, card in found.items()} == {
        "dit/Glow": "dit/Glow.safetensors", "Glow": "unet/Glow.safetensors", "glow": "unet/Glow.safetensors",
        "dit/glow.safetensors": "dit/Glow.safetensors", "nothing": None,
    }  # fmt: skip


@pytest.mark.parametrize("card_id", ["", "nothing", "/etc/passwd", "../unet/Glow.safetensors", "unet/../unet/Glow"])
def test_only_ids_of_cards_are_ways_to_files(library: Library, card_id: str) -> None:
    shelf = Shelf(library)
    for ask in (shelf.card, shelf.path):
        with pytest.raises(SourceError, match="not in the library"):
            ask(card_id)


@pytest.mark.parametrize("by_hash", [False, True])
def test_the_places_that_a_recipe_came_with_are_not_followed(library: Library, tmp_path: Path, by_hash: bool) -> None:
    """A file that is there, but not in the library, is named and refused; one of the library's is taken from there."""
    outside = tmp_path / "secret.safetensors"
    shutil.copyfile(files.adapters("unet")["outline"], outside)
    part = Part(name="secret", source=str(outside))
    part = pinned(part, outside) if by_hash else part
    recipe = Recipe(adapters=(part, Part(name="Glow", source="hf://owner/name/x.safetensors")))
    shelf = Shelf(library)
    with pytest.raises(RecipeError, match="does not have 'secret'") as caught:
        shelf.resolve(recipe)
    assert str(tmp_path) not in str(caught.value)
    mine = shelf.path("unet/Glow.safetensors")
    misled = pinned(Part(name="secret", source=str(outside)), mine)  # the right hash, another place
    (found,) = shelf.resolve(Recipe(adapters=(misled,))).adapters
    assert found.source == str(mine)
    (named,) = shelf.resolve(
        Recipe(adapters=(replace(part, name="Glow", sha256=None, autov3=None, size=None),))
    ).adapters
    assert named.source == str(mine)


def test_a_file_is_known_by_its_hash_under_any_name(library: Library) -> None:
    shelf = Shelf(library)
    part = pinned(Part(name="Frame"), shelf.path("unet/Glow.safetensors"))
    card = shelf.holding(replace(part, file="elsewhere.safetensors"))
    assert card is not None
    assert card.id == "unet/Glow.safetensors"
    assert shelf.holding(replace(part, sha256="0" * 64, autov3=None)) is None


def test_uploads_are_seen_by_their_session_alone(library: Library, sessions: Sessions) -> None:
    one, other = sessions.get("one"), sessions.get("other")
    held = one.take(files.adapters("unet")["outline"], library)
    assert one.shelf(library).fit(held.card) == Fit("green", "116 of 116")
    assert one.shelf(library).named("outline") == held.card
    assert held.card.id in {card.id for card in one.shelf(library).cards("outline")}
    assert other.shelf(library).named("outline") is None
    assert library.held().keys().isdisjoint({held.card.id})
    with pytest.raises(SourceError, match="not in the library"):
        other.shelf(library).path(held.card.id)
    assert held.path.is_relative_to(one.folder)
    assert str(one.folder) not in held.card.to_json()
    sessions.close("one")
    assert not held.path.exists()
    assert sessions.get("one").shelf(library).named("outline") is None


def test_uploads_of_one_name_are_each_their_sessions_own(sessions: Sessions, studio: Studio, tmp_path: Path) -> None:
    """In turn, each gets the picture of its own file, though both are called the same."""
    empty = Library((), studio.pipeline)
    pictures = []
    for key, name in (("one", "glow"), ("other", "frame")):
        path = tmp_path / key / "style.safetensors"
        path.parent.mkdir()
        shutil.copyfile(files.adapters("unet")[name], path)
        sessions.get(key).take(path, empty)
    for key in ("one", "other", "one", "other"):
        drawing = Drawing(studio, sessions.get(key).shelf(empty))
        pictures.append(drawing(*mix.with_prompt([], "<lora:style>", drawing.shelf)).picture.tobytes())
    assert pictures[:2] == pictures[2:]
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("notes.txt", b"text", "is no adapter file"), ("run.sh", b"#!/bin/sh", "is no adapter file"),
        ("page.safetensors", files.PAGE.encode(), "HTML"), ("pointer.safetensors", files.POINTER.encode(), "LFS"),
        ("empty.safetensors", b"", "empty"), ("code.pt", None, "code.pt"),
    ],
)  # fmt: skip
def test_uploads_that_are_no_adapters_are_refused(
    library: Library, sessions: Sessions, tmp_path: Path, name: str, content: bytes | None, word: str
) -> None:
    if content is None:
        files.troubles(tmp_path)
    else:
        (tmp_path / name).write_bytes(content)
    mine = sessions.get("one")
    with pytest.raises(SourceError, match=word) as caught:
        mine.take(tmp_path / name, library)
    assert str(tmp_path) not in str(caught.value)
    assert str(mine.folder) not in str(caught.value)
    assert (mine.uploads, list(mine.folder.iterdir())) == ({}, [])
    assert not (tmp_path / "CANARY").exists()


def test_uploads_are_limited(
    library: Library, sessions: Sessions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    glow = files.adapters("unet")["glow"]
    monkeypatch.setattr(session, "UPLOADS", 2)
    mine = sessions.get("one")
    for _ in range(2):
        mine.take(glow, library)
    assert len(mine.uploads) == 2
    with pytest.raises(SourceError, match="2 uploads already"):
        mine.take(glow, library)
    monkeypatch.setattr(session, "UPLOAD_BYTES", 1000)
    with pytest.raises(SourceError, match="expected at most 1000"):
        sessions.get("other").take(glow, library)


def test_an_upload_that_fits_only_in_part_says_what_does_not(
    library: Library, sessions: Sessions, tmp_path: Path
) -> None:
    tensors = load_file(files.adapters("unet")["outline"])
    astray = {key.replace("down_blocks.0", "down_blocks.9"): tensor for key, tensor in tensors.items()}
    save_file(astray, tmp_path / "partly.safetensors")
    held = sessions.get("one").take(tmp_path / "partly.safetensors", library)
    fit = library.fit(held.card)
    assert fit.level == "amber"
    assert any("down_blocks.9" in reason for reason in fit.reasons)


def test_sessions_are_few_and_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SESSIONS", 3)
    sessions = Sessions()
    kept: list[Session] = [sessions.get(str(number)) for number in range(3)]
    running = kept[1].begin()
    assert sessions.get("0") is kept[0]
    sessions.get("new")
    assert [one.folder.exists() for one in kept] == [True, False, True]
    assert running()  # whose session has left is stopped
    sessions.close("none")
    monkeypatch.setattr(session, "PASSING", 2)
    passing = [sessions.once() for _ in range(3)]
    assert [one.folder.exists() for one in passing] == [False, True, True]
    assert kept[0].folder.exists()  # nobody's session leaves for calls that belong to none
    sessions.close_all()
    assert all(one.stop.is_set() for one in passing)
    assert not sessions.folder.exists()


def test_a_session_keeps_its_latest_pictures(
    draw: Drawing, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "SHOTS", 2)
    mine, drawn = sessions.get("one"), draw(Row("glow", "glow", weight=0.5))
    shots = [mine.keep(drawn) for _ in range(3)]
    assert mine.shots == shots[1:]
    assert [shot.path.exists() for shot in shots] == [False, True, True]
    assert mine.shot("#3") == mine.shot(shots[2].label) == shots[2]
    assert shots[2].label == "#3 glow 0.5, seed 3"
    for label in ("#1", "", "#4", shots[0].label):
        with pytest.raises(SourceError, match="no picture of this session"):
            mine.shot(label)

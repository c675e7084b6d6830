"""The library: every file of a folder has a card, whatever it is; cards are remembered; a scan is beside the page."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffadapt.apps.mixer import cards, library
from diffadapt.apps.mixer.library import Library
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.apps.mixer.studio import Studio
from tests.apps import files
from tests.attacks import files as hostile

EACH = 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of a hundred files and more of every kind; nobody writes to it."""
    found = tmp_path_factory.mktemp("loras")
    files.fill(found, EACH)
    files.troubles(found)
    shutil.copytree(files.adapters("unet")["dusk"].parent, found / "my-dusk")
    for below in ("a", "b"):
        (found / below).mkdir()
        shutil.copyfile(files.adapters("unet")["glow"], found / below / "style.safetensors")
    (found / "notes.txt").write_text("no adapter")
    return found


@pytest.fixture(scope="module")
def scanned(folder: Path, studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Library:
    found = Library([folder], studio.pipeline, tmp_path_factory.mktemp("kept") / "new" / "cards.sqlite")
    found.scan(wait=True)
    return found


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the files that are read from now on."""
    read: list[str] = []

    def card_of(path: Path, card_id: str, recogniser: object) -> cards.Card:
        read.append(card_id)
        return cards.card_of(path, card_id, recogniser)

    monkeypatch.setattr(library, "card_of", card_of)
    return read


def test_every_file_has_a_card(scanned: Library, folder: Path) -> None:
    held = scanned.held()
    there = {
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in (".safetensors", ".pt")
    }
    assert held.keys() == there
    assert len(held) > 100
    assert all(one.card.id == card_id for card_id, one in held.items())
    assert scanned.progress.done == scanned.progress.total == len(held)
    assert not scanned.progress.running


def test_a_card_says_what_the_file_is(scanned: Library) -> None:
    held = scanned.held()
    glow = held["unet/glow/glow-0.safetensors"].card
    assert (glow.name, glow.dialect, glow.algorithms, glow.ranks) == ("glow-0", "diffusers", "dora", "4")
    assert (glow.modules, glow.problem) == (116, "")
    dusk = held["my-dusk/adapter_model.safetensors"].card
    assert (dusk.name, dusk.dialect, dusk.problem) == ("my-dusk", "peft", "")
    assert held["a/style.safetensors"].card.name == held["b/style.safetensors"].card.name == "style"


def test_what_does_not_fit_says_why(scanned: Library) -> None:
    shelf = Shelf(scanned)
    levels: dict[str, set[str]] = {}
    for card in shelf.cards():
        fit = shelf.fit(card)
        levels.setdefault(card.id.partition("/")[0], set()).add(fit.level)
        assert fit.level == "green" or fit.reasons, card.id
        if fit.level == "green":
            applied, of, total = fit.text.split()
            assert (applied, of) == (total, "of"), card.id
    assert levels["unet"] == levels["my-dusk"] == levels["a"] == {"green"}
    assert levels["dit"] <= {"red", "amber"}


@pytest.mark.parametrize(("card_id", "word"), [*files.TROUBLES.items()])
def test_a_file_that_cannot_be_used_says_why(scanned: Library, folder: Path, card_id: str, word: str) -> None:
    card = scanned.held()[card_id].card
    assert word in card.problem
    assert card_id in card.problem
    assert scanned.fit(card).level == "red"
    assert scanned.fit(card).reasons == (card.problem,)
    assert not (folder / "CANARY").exists()


def test_nothing_that_is_said_names_a_place_on_this_machine(scanned: Library, folder: Path) -> None:
    for card in Shelf(scanned).cards():
        told = str(cards.facts(card, scanned.fit(card)))
        assert str(folder) not in told, card.id
        assert str(folder.parent) not in told, card.id
        assert not card.id.startswith("/")


def test_cards_are_remembered(scanned: Library, studio: Studio, counted: list[str]) -> None:
    again = Library(scanned.folders, studio.pipeline, scanned._keep)
    again.scan(wait=True)
    assert counted == ["gone.safetensors"]  # there is nothing to remember it by
    assert again.held() == scanned.held()
    assert {card.id: again.fit(card) for card in Shelf(again).cards()} == {
        card.id: scanned.fit(card) for card in Shelf(scanned).cards()
    }


def test_changed_files_are_read_anew_and_gone_ones_leave(tmp_path: Path, studio: Studio, counted: list[str]) -> None:
    folder, glow = tmp_path / "loras", files.adapters("unet")["glow"]
    folder.mkdir()
    for name in ("a", "b", "c"):
        shutil.copyfile(glow, folder / f"{name}.safetensors")
    found = Library([folder], studio.pipeline, tmp_path / "cards.sqlite")
    found.scan(wait=True)
    assert counted == ["a.safetensors", "b.safetensors", "c.safetensors"]
    shutil.copyfile(files.adapters("dit")["glow"], folder / "a.safetensors")
    (folder / "b.safetensors").unlink()
    shutil.copyfile(glow, folder / "d.safetensors")
    counted.clear()
    found.scan(wait=True)
    assert counted == ["a.safetensors", "d.safetensors"]
    held = found.held()
    assert [*held] == ["a.safetensors", "c.safetensors", "d.safetensors"]
    assert found.fit(held["a.safetensors"].card).level != "green"
    assert found.fit(held["d.safetensors"].card).level == "green"


def test_a_pickle_that_changes_is_looked_at_again(tmp_path: Path, studio: Studio) -> None:
    """Its fit, too: a pickle has no header by which files are known to be alike."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "loras"
    folder.mkdir()
    found = Library([folder], studio.pipeline, tmp_path / "cards.sqlite")
    for pipeline, level in (("unet", "green"), ("dit", "red")):
        torch.save(load_file(files.adapters(pipeline)["glow"]), folder / "glow.pt")
        found.scan(wait=True)
        assert found.fit(found.held()["glow.pt"].card).level == level


@pytest.mark.parametrize("content", [b"", b"no database", None])
def test_a_broken_cache_is_none(tmp_path: Path, content: bytes | None, counted: list[str]) -> None:
    shutil.copyfile(files.adapters("unet")["glow"], tmp_path / "glow.safetensors")
    keep = tmp_path / "kept" / "cards.sqlite"
    if content is not None:
        keep.parent.mkdir()
        keep.write_bytes(content)
    else:
        keep.parent.write_text("a file where the folder would be")
    found = Library([tmp_path], None, keep)
    found.scan(wait=True)
    assert found.held()["glow.safetensors"].card.algorithms == "dora"


def test_cards_of_another_version_are_made_anew(tmp_path: Path, counted: list[str]) -> None:
    folder, keep = tmp_path / "loras", tmp_path / "cards.sqlite"
    folder.mkdir()
    shutil.copyfile(files.adapters("unet")["glow"], folder / "glow.safetensors")
    Library([folder], None, keep).scan(wait=True)
    for change in ("UPDATE cards SET look = look - 1", "UPDATE cards SET card = '{\"id\": 1}'"):
        with sqlite3.connect(keep) as database:
            database.execute(change)
        database.close()
        counted.clear()
        found = Library([folder], None, keep)
        found.scan(wait=True)
        assert counted == ["glow.safetensors"]
        assert found.held()["glow.safetensors"].card.name == "glow"


def test_several_folders_and_single_files(tmp_path: Path) -> None:
    glow = files.adapters("unet")["glow"]
    for below in ("one/loras", "two/loras", "three"):
        (tmp_path / below).mkdir(parents=True)
        shutil.copyfile(glow, tmp_path / below / "glow.safetensors")
    found = Library([tmp_path / "one/loras", tmp_path / "two/loras", tmp_path / "three/glow.safetensors"])
    found.scan(wait=True)
    held = found.held()
    assert len(held) == 3
    assert {one.path for one in held.values()} == set(tmp_path.rglob("*.safetensors"))
    assert all("/" in card_id and not card_id.startswith(("/", ".")) for card_id in held)
    alone = Library([tmp_path / "three/glow.safetensors"])
    alone.scan(wait=True)
    assert [*alone.held()] == ["glow.safetensors"]
    nothing = Library([tmp_path / "none", tmp_path / "one" / "loras"])
    nothing.scan(wait=True)
    assert len(nothing.held()) == 1


def test_a_name_that_is_no_text_has_a_card(tmp_path: Path, counted: list[str]) -> None:
    if files.odd_name(tmp_path, files.adapters("unet")["glow"]) is None:
        return  # no such names on this system
    found = Library([tmp_path], None, tmp_path / "cards.sqlite")
    for times in (1, 2):
        found.scan(wait=True)
        ((card_id, held),) = found.held().items()
        card_id.encode()
        held.card.to_json().encode()
        assert held.card.algorithms == "dora", times


def test_hostile_files_are_cards(tmp_path: Path, studio: Studio) -> None:
    """Damaged headers, and pickles that lie about their tensors; what takes long is in tests/attacks."""
    slow = ("bomb", "many-keys", "aliases", "million", "megabyte", "deep", "long")
    for kind, group in (("safetensors", hostile.damaged_headers()), ("safetensors", hostile.damaged_entries()),
                        ("pt", hostile.tensor_pickles()), ("ckpt", hostile.stream_pickles())):  # fmt: skip
        for name, content in group:
            if not any(word in name for word in slow):
                (tmp_path / f"{kind}-{name}.{kind}").write_bytes(content)
    found = Library([tmp_path], studio.pipeline)
    found.scan(wait=True)
    held = found.held()
    assert len(held) == len(list(tmp_path.iterdir())) > 60
    for card_id, one in held.items():
        assert one.card.problem, card_id
        assert one.card.problem.isprintable()
        assert found.fit(one.card).level == "red"


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Lets files be read only after it is set."""
    go = threading.Event()

    def card_of(path: Path, card_id: str, recogniser: object) -> cards.Card:
        assert go.wait(60)
        return cards.card_of(path, card_id, recogniser)

    monkeypatch.setattr(library, "card_of", card_of)
    yield go
    go.set()


def test_cards_can_be_asked_for_while_files_are_read(folder: Path, held_up: threading.Event) -> None:
    found = Library([folder])
    found.scan()
    while not found.progress.total:
        assert found.progress.running
        time.sleep(0.01)
    shelf = Shelf(found)
    names = [card.name for card in shelf.cards()]
    assert len(names) == found.progress.total > 100
    assert (found.progress.done, found.progress.running) == (0, True)
    assert shelf.fit(shelf.cards()[0]).level == "grey"
    held_up.set()
    assert found._thread is not None
    found._thread.join()
    assert not found.progress.running
    assert all(card.size or card.problem for card in shelf.cards())


def test_a_scan_runs_from_its_first_moment_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while it looks for files: a page that asks then must ask again."""
    go = threading.Event()
    walk = library.find

    def find(sources: list[str]) -> Iterator[object]:
        assert go.wait(60)
        return walk(sources)

    monkeypatch.setattr(library, "find", find)
    found = Library([folder])
    assert not found.progress.running
    found.scan()
    assert found.progress.running
    go.set()
    found.scan(wait=True)
    assert not found.progress.running


def test_closing_stops_a_scan(folder: Path, held_up: threading.Event) -> None:
    found = Library([folder])
    found.scan()
    threading.Timer(0.05, held_up.set).start()
    found.close()
    assert found._thread is not None
    assert not found._thread.is_alive()
    assert found.progress.done <= found.progress.total
    assert not found.progress.running


def test_two_thousand_files(tmp_path: Path, studio: Studio, capsys: pytest.CaptureFixture[str]) -> None:
    """They are scanned by their headers while the page asks for cards, and at once when they are known."""
    count = files.fill(tmp_path / "loras", 143)
    assert count >= 2000
    found = Library([tmp_path / "loras"], studio.pipeline, tmp_path / "cards.sqlite")
    shelf, asked, seen = Shelf(found), 0, set()
    started = time.perf_counter()
    found.scan()
    while found.progress.running:
        seen.add(found.progress.done)
        asked += len(shelf.cards()[:60]) > 0
        time.sleep(0.2)
    first = time.perf_counter() - started
    assert found.progress.done == found.progress.total == count
    assert sum(shelf.fit(card).level == "green" for card in shelf.cards()) == count / 2
    assert asked > 1
    assert len(seen) > 1
    started = time.perf_counter()
    found.scan(wait=True)
    again = time.perf_counter() - started
    with capsys.disabled():
        print(f"\n{count} files: {first:.1f} s the first time, {again:.1f} s the second, asked {asked} times")
    assert os.path.getsize(tmp_path / "cards.sqlite") > 0

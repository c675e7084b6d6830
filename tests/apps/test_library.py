"""The library: every file of a folder has a card, whatever it is; cards are remembered; a scan is beside the page."""

from __future__ import annotations

import shutil
import sqlite3
from itertools import islice
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
    """Damaged headers, and pickles that lie about their tensors; the many and the large are in tests/attacks."""
    groups = (("safetensors", islice(hostile.damaged_headers(), 12)), ("safetensors", hostile.damaged_entries()),
              ("pt", islice(hostile.tensor_pickles(), 14)), ("ckpt", hostile.stream_pickles()))  # fmt: skip
    for kind, group in groups:
        for name, content in group:
            (tmp_path / f"{kind}-{name}.{kind}").write_bytes(content)
    found = Library([tmp_path], studio.pipeline)
    found.scan(wait=True)
    held = found.held()
    assert len(held) == len(list(tmp_path.iterdir())) > 50
    for card_id, one in held.items():
        assert one.card.problem, card_id
        assert one.card.problem.isprintable()
        assert found.fit(one.card).level == "red"

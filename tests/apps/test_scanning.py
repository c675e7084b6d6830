"""A scan of the library is beside the page: it does not wait, it says how far it is, and it can be stopped."""

from __future__ import annotations

import os
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some files of every kind; nobody writes to it."""
    found = tmp_path_factory.mktemp("loras")
    files.fill(found, 3)
    files.troubles(found)
    return found


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
    assert len(names) == found.progress.total > 40
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

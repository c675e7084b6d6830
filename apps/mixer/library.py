"""The library: a folder of adapters, scanned beside the page and remembered from run to run."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from diffadapt import shapes
from diffadapt.explain.recogniser import Recogniser
from diffadapt.explain.sources import Kind, find

from .cards import LOOK, Card, Fit, card_of, fit_of


@dataclass(frozen=True)
class Progress:
    """How far a scan is. changed: counts up whenever a card does. running: also while files are looked for."""

    done: int
    total: int
    changed: int
    running: bool


class Held(NamedTuple):
    """A file and its card."""

    path: Path
    card: Card


class Library:
    """The adapters of some folders, by id. Files are read in a thread; cards are there as they come."""

    def __init__(self, folders: Iterable[Path], pipeline: Any = None, keep: Path | None = None) -> None:
        """pipeline: what `fit` asks. keep: the SQLite file in which cards are remembered; None: they are not."""
        self.folders = tuple(Path(folder).expanduser().resolve() for folder in folders)
        self.pipeline, self._keep = pipeline, keep
        self._paths: dict[str, Path] = {}
        self._cards: dict[str, Card] = {}
        self._fits: dict[str, Fit] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._changed, self._done, self._running = 0, 0, False

    # -- asking ------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        return Progress(self._done, len(self._paths), self._changed, self._running)

    def held(self) -> dict[str, Held]:
        """Every file by id, also those whose card is not made yet."""
        cards = self._cards
        return {key: Held(path, cards.get(key) or Card(key, key)) for key, path in list(self._paths.items())}

    def fit(self, card: Card) -> Fit:
        """How a card's file and the pipeline go together."""
        if card.problem:
            return Fit("red", "cannot be used", (card.problem,))
        return self._fits.get(card.structure or card.id, Fit("grey", "not looked at yet"))

    def look(self, path: Path, card_id: str) -> Held:
        """A single file, such as one that was uploaded: it does not come into the library."""
        card = card_of(path, card_id, Recogniser())
        self._measure(card, path)
        return Held(path, card)

    # -- scanning ----------------------------------------------------------------------------------------------

    def scan(self, wait: bool = False) -> None:
        """Look for files that are new, changed or gone. wait: until that is done."""
        self.close()
        self._stop.clear()
        self._running = True
        self._thread = threading.Thread(target=self._scan, name="library", daemon=True)
        self._thread.start()
        if wait:
            self._thread.join()

    def close(self) -> None:
        """Stop scanning."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _scan(self) -> None:
        try:
            self._read_all(dict(self._files()))
        finally:
            self._running = False

    def _read_all(self, found: dict[str, Path]) -> None:
        for gone in self._cards.keys() - found.keys():
            self._cards.pop(gone, None)
        self._paths, self._done = found, 0
        recogniser = Recogniser(sampled=True)
        with closing(_Kept(self._keep)) as kept:
            for card_id, path in found.items():
                if self._stop.is_set():
                    return
                card = kept.get(path, card_id)
                if card is None:
                    card = card_of(path, card_id, recogniser)
                    kept.put(path, card)
                self._put(card)
                self._done += 1

    def _put(self, card: Card) -> None:
        self._measure(card, self._paths[card.id])
        self._cards[card.id] = card
        self._changed += 1

    def _measure(self, card: Card, path: Path) -> None:
        key = card.structure or card.id
        if self.pipeline is not None and not card.problem and key not in self._fits:
            self._fits[key] = fit_of(path, self.pipeline)

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Id and path of every adapter file. Ids are paths below the folder; with several folders, after its name, with
        a number where others have it too. What is no UTF-8 in a name has a stand-in."""
        taken: set[str] = set()
        for folder in self.folders:
            name, number = folder.name, 2
            while name in taken:
                name, number = f"{folder.name}-{number}", number + 1
            taken.add(name)
            before = f"{name}/" if len(self.folders) > 1 else ""
            for one in find([str(folder)]):
                if one.kind is Kind.FILE:
                    path = Path(one.text)
                    inside = path.name if path == folder else path.relative_to(folder).as_posix()
                    yield os.fsencode(before + inside).decode("utf-8", "replace"), path


class EmbeddedLibrary(Library):
    """The adapters that come with an embedded pipeline, with what its index says of them."""

    def __init__(self, name: str, pipeline: Any, folders: Iterable[Path] = ()) -> None:
        super().__init__(folders, pipeline)
        self.samples = {sample.name: sample for sample in shapes.adapters(name)}
        self.title = shapes.title(name)

    def _files(self) -> Iterator[tuple[str, Path]]:
        for sample in self.samples.values():
            path = sample.path if sample.path.is_file() else sample.path / "adapter_model.safetensors"
            yield sample.name, path
        yield from super()._files()

    def _put(self, card: Card) -> None:
        sample = self.samples.get(card.id)
        if sample is not None:
            words = (sample.trigger,) if sample.trigger else card.trigger_words
            card = replace(card, family=self.title, concept=sample.concept, trigger_words=words, warnings=())
        super()._put(card)


class _Kept:
    """Cards of earlier runs, by path, size and time of change."""

    def __init__(self, path: Path | None) -> None:
        self._database: sqlite3.Connection | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, isolation_level=None, timeout=10)
            self._database.execute("PRAGMA synchronous = OFF")  # what a power cut destroys is read again
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS cards (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, "
                "look INTEGER, card TEXT)"
            )
        except (OSError, sqlite3.Error):
            self._database = None  # a cache that cannot be kept is none

    def get(self, path: Path, card_id: str) -> Card | None:
        if self._database is None:
            return None
        try:
            about = path.stat()
            row = self._database.execute(
                "SELECT card FROM cards WHERE path = ? AND size = ? AND modified = ? AND look = ?",
                (os.fsencode(path), about.st_size, about.st_mtime_ns, LOOK),
            ).fetchone()
            return replace(Card.from_json(row[0]), id=card_id) if row else None
        except (OSError, sqlite3.Error, ValueError, TypeError, KeyError):
            return None

    def put(self, path: Path, card: Card) -> None:
        if self._database is None:
            return
        try:
            about = path.stat()
            self._database.execute(
                "INSERT OR REPLACE INTO cards VALUES (?, ?, ?, ?, ?)",
                (os.fsencode(path), about.st_size, about.st_mtime_ns, LOOK, card.to_json()),
            )
        except (OSError, sqlite3.Error):
            return

    def close(self) -> None:
        if self._database is not None:
            self._database.close()


def cache_folder() -> Path:
    """Where cards and previews are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "diffadapt"

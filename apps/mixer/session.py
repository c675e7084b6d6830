"""What belongs to one session of the page or of a client: its pictures, its uploads, whether it wants to stop."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path

from diffadapt.errors import SourceError
from diffadapt.io.folder import SUFFIXES
from diffadapt.recipe import Recipe, save_png

from .keep import UPLOAD_BYTES
from .library import Held, Library
from .shelf import Shelf
from .studio import Asked, Drawn

SESSIONS, PASSING, SHOTS, UPLOADS = 256, 16, 200, 32


@dataclass(frozen=True)
class Shot:
    """A picture of a session. path: a PNG that holds its recipe."""

    number: int
    path: Path
    recipe: Recipe
    seconds: float

    @property
    def label(self) -> str:
        """What lists call it."""
        mix = ", ".join(f"{part.name} {part.main_weight:g}" for part in self.recipe.adapters) or "no adapters"
        return f"#{self.number} {mix}, seed {self.recipe.seed or 0}"


@dataclass
class Session:
    """One person's things; no tensors among them. folder: of its files, gone with it."""

    folder: Path
    shots: list[Shot] = field(default_factory=list)
    uploads: dict[str, Held] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    written: deque[str] = field(default_factory=lambda: deque(maxlen=4))
    """The prompts that rows have last written: what changes to one of these was not typed by anybody."""
    _count: int = 0

    def shelf(self, library: Library) -> Shelf:
        """The library with this session's uploads."""
        return Shelf(library, self.uploads)

    def begin(self) -> Asked:
        """A new run: what tells whether it was asked to stop."""
        self.stop = threading.Event()
        return self.stop.is_set

    def keep(self, drawn: Drawn) -> Shot:
        """Write a picture with its recipe, and remember it."""
        self._count += 1
        path = save_png(drawn.picture, self.folder / f"diffadapt-{self._count:04}.png", drawn.recipe)
        self.shots.append(Shot(self._count, path, drawn.recipe, drawn.seconds))
        for old in self.shots[:-SHOTS]:
            old.path.unlink(missing_ok=True)
        del self.shots[:-SHOTS]
        return self.shots[-1]

    def shot(self, label: str) -> Shot:
        """The picture of a label. Raises SourceError where the session does not have it."""
        found = next((shot for shot in self.shots if shot.label == label or f"#{shot.number}" == label), None)
        if found is None:
            raise SourceError(f"{label!r} is no picture of this session. Make one first.")
        return found

    def take(self, upload: Path, library: Library) -> Held:
        """Put an uploaded adapter on this session's shelf. Raises SourceError for what cannot be used."""
        if upload.suffix.lower() not in SUFFIXES:
            raise SourceError(f"{upload.name}: is no adapter file. Expected one of {', '.join(SUFFIXES)}.")
        if upload.stat().st_size > UPLOAD_BYTES:
            raise SourceError(f"{upload.name}: has {upload.stat().st_size} bytes; expected at most {UPLOAD_BYTES}.")
        if len(self.uploads) >= UPLOADS:
            raise SourceError(f"There are {UPLOADS} uploads already; start a new session for more.")
        place = self.new_folder("upload") / upload.name
        shutil.copyfile(upload, place)
        held = library.look(place, f"{place.parent.name}/{upload.name}")
        if held.card.problem:
            shutil.rmtree(place.parent)
            raise SourceError(held.card.problem)
        self.uploads[held.card.id] = held
        return held

    def new_folder(self, name: str) -> Path:
        """A folder of its own below the session's."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))


class Sessions:
    """Every session, by the key that its page or client has. Those that were not used for longest leave."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="diffadapt-mixer-"))
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._passing: deque[Session] = deque()
        self._lock = threading.Lock()

    def get(self, key: str | None) -> Session:
        """The session of a key, made where there is none."""
        with self._lock:
            found = self._sessions.get(key or "")
            if found is None:
                found = Session(Path(tempfile.mkdtemp(dir=self.folder)))
                self._sessions[key or ""] = found
            self._sessions.move_to_end(key or "")
            while len(self._sessions) > SESSIONS:
                self._end(self._sessions.popitem(last=False)[1])
            return found

    def once(self) -> Session:
        """A session for a single call that belongs to none; it ends when some more of them have begun."""
        with self._lock:
            self._passing.append(Session(Path(tempfile.mkdtemp(dir=self.folder))))
            if len(self._passing) > PASSING:
                self._end(self._passing.popleft())
            return self._passing[-1]

    def close(self, key: str | None) -> None:
        """End a session: its run, its pictures, its uploads."""
        with self._lock:
            found = self._sessions.pop(key or "", None)
        if found is not None:
            self._end(found)

    def close_all(self) -> None:
        """End every session and remove all of their files."""
        for key in list(self._sessions):
            self.close(key)
        for one in self._passing:
            one.stop.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def _end(session: Session) -> None:
        session.stop.set()
        shutil.rmtree(session.folder, ignore_errors=True)

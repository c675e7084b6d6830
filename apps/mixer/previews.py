"""Small pictures for cards: what lies beside a file, what its header holds, or what an embedded pipeline draws."""

from __future__ import annotations

import base64
import binascii
import io
import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from PIL import Image

from diffadapt import shapes
from diffadapt.errors import DiffAdaptError, SourceError
from diffadapt.io.headers import read_text
from diffadapt.io.sniff import FileKind, sniff

from .library import Library, cache_folder
from .mix import Row, to_recipe
from .shelf import Shelf
from .studio import Cancelled, Request, Studio

SIDE = 112
_BYTES = 16 << 20
_PIXELS = 64_000_000
_ENDINGS = (".preview.png", ".preview.jpg", ".preview.webp", ".png", ".jpg", ".jpeg", ".webp")
_THUMBNAIL = "modelspec.thumbnail"


def preview_of(path: Path) -> str | None:
    """The picture of an adapter file as a data address, small; None where there is none that can be read."""
    try:
        return _preview(path, path.stat().st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _preview(path: Path, modified: int) -> str | None:
    stem = path.with_suffix("")
    for ending in _ENDINGS:
        beside = stem.with_name(stem.name + ending)
        if beside.is_file() and beside.stat().st_size <= _BYTES:
            return small(beside.read_bytes())
    return _in_header(path)


def _in_header(path: Path) -> str | None:
    """The thumbnail that a file's metadata hold."""
    try:
        if sniff(path, path.name) is not FileKind.SAFETENSORS:
            return None
        held = (read_text(path).parts()[0] or {}).get(_THUMBNAIL, "")
    except SourceError:
        return None
    head, comma, data = held.partition(",")
    if not comma or not head.startswith("data:image/") or len(data) > _BYTES:
        return None
    try:
        return small(base64.b64decode(data, validate=True))
    except binascii.Error:
        return None


def small(data: bytes) -> str | None:
    """A picture of a stranger as a small one of ours; None for what is none, or is too large to be opened."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as found:
            if found.width * found.height > _PIXELS:
                return None
            found.draft("RGB", (2 * SIDE, 2 * SIDE))
            picture = found.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"


class Drawn:
    """Previews that an embedded pipeline draws of its own adapters, when nobody else asks it for anything."""

    def __init__(self, studio: Studio, library: Library) -> None:
        self.studio, self.library = studio, library
        self._found: dict[str, str] = {}
        self._stop = threading.Event()
        self.running = False

    def of(self, card_id: str) -> str | None:
        """The preview of a card, where it is drawn."""
        return self._found.get(card_id)

    def start(self, samples: Iterable[shapes.Sample]) -> None:
        """Draw what is not kept from an earlier run, one by one, in a thread."""
        self.running = True
        thread = threading.Thread(target=self._run, args=(list(samples),), name="previews", daemon=True)
        thread.start()

    def close(self) -> None:
        self._stop.set()

    def _run(self, samples: list[shapes.Sample]) -> None:
        for sample in samples:
            try:
                picture = self._picture(sample)
            except Cancelled:
                break
            except (DiffAdaptError, OSError):
                continue  # a card without a picture
            if picture is not None:
                self._found[sample.name] = picture
        self.running = False

    def _picture(self, sample: shapes.Sample) -> str | None:
        shelf = Shelf(self.library)
        card = shelf.card(sample.name)
        kept = cache_folder() / "previews" / f"{self.studio.kind}-{sample.name}-{card.size}.png"
        if not kept.is_file():
            recipe = to_recipe([Row(card.id, card.name)], sample.prompt, {"seed": 0})
            drawn = self.studio.draw(Request(shelf.resolve(recipe)), stop=self._stop.is_set)
            kept.parent.mkdir(parents=True, exist_ok=True)
            drawn.picture.save(kept)
        return small(kept.read_bytes())

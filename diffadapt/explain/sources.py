"""What a command line names, one by one: files, folders, patterns, addresses, Hub ids."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from diffadapt.errors import SourceError
from diffadapt.io.folder import SUFFIXES, is_weights
from diffadapt.io.hub import is_hub_id
from diffadapt.io.stores import is_store, listed

_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_HUB = "hf://"


class Kind(Enum):
    """How a source is read. MISSING is none."""

    FILE = "file"
    URL = "url"
    HUB = "hub"
    STORE = "store"
    MISSING = "missing"


class Found(NamedTuple):
    """One thing to explain. text: a path, an address, a Hub id with or without a file; of MISSING, why. STORE: an
    address that fsspec opens."""

    kind: Kind
    text: str


def find(sources: Iterable[str]) -> Iterator[Found]:
    """Every single thing that the sources name.

    A source is a file; a folder, of which all adapter files are taken, those below it too; a pattern
    (`**/*.safetensors`); an http(s) address; a Hub id owner/name, or hf://owner/name/file.safetensors for one of its
    files; what fsspec opens (s3://bucket/folder), files, folders and patterns. A local path wins over a Hub id of the
    same text.
    """
    for source in sources:
        path = Path(source).expanduser()
        if is_store(source):
            yield from _stored(source)
        elif _ADDRESS.match(source):
            yield Found(Kind.URL, source)
        elif source.startswith(_HUB):
            yield Found(Kind.HUB, source[len(_HUB) :])
        elif _is(path, os.path.isdir):
            yield from _all_of(map(str, _below(path)), f"{source}: holds no adapter file.")
        elif _is(path, os.path.exists):
            yield Found(Kind.FILE, str(path))
        elif glob.has_magic(source):
            names = sorted(glob.glob(str(path), recursive=True))
            yield from _all_of((name for name in names if os.path.isfile(name)), f"{source}: matches no file.")
        elif is_hub_id(source) and not source.lower().endswith(SUFFIXES):
            yield Found(Kind.HUB, source)
        else:
            yield Found(
                Kind.MISSING,
                f"{source}: no such file or folder. Expected a path, a pattern, https://..., owner/name on the Hub, or "
                "hf://owner/name/file.safetensors.",
            )


def _stored(address: str) -> Iterator[Found]:
    try:
        found = listed(address)
    except SourceError as error:
        yield Found(Kind.MISSING, str(error))
        return
    if not found:
        yield Found(Kind.MISSING, f"{address}: holds no adapter file there.")
    yield from (Found(Kind.STORE, one) for one in found)


def _is(path: Path, test: Callable[[Path], bool]) -> bool:
    """A test of a path that may be one that the system cannot even look up."""
    try:
        return test(path)
    except (OSError, ValueError):
        return False


def _below(folder: Path) -> Iterator[Path]:
    """The weights in a folder and below it, in order. Of the same weights as pickle and safetensors, the latter."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        safe = {name.rpartition(".")[0] for name in names if name.endswith(".safetensors")}
        for name in sorted(names):
            if is_weights(name) and (name.endswith(".safetensors") or name.rpartition(".")[0] not in safe):
                yield Path(root, name)


def _all_of(paths: Iterable[str], none: str) -> Iterator[Found]:
    any_found = False
    for path in paths:
        any_found = True
        yield Found(Kind.FILE, path)
    if not any_found:
        yield Found(Kind.MISSING, f"{none} Expected .safetensors, .bin, .pt, .pth or .ckpt files.")

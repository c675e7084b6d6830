"""Where a recipe's files are: at their place, in a folder by name or by hash, in the Hub's cache, on the Hub.

A recipe may come from a stranger. Names in it are compared with what a folder holds and never joined to a path; a path
is followed only where it is a plain local one; nothing is downloaded unless that was asked for, and then from the Hub
only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from diffadapt.errors import SourceError
from diffadapt.io.folder import SUFFIXES
from diffadapt.io.hashes import FileHashes, hash_file
from diffadapt.io.hub import HubOptions, fetch, is_hub_id
from diffadapt.io.plain_json import clip
from diffadapt.recipe.part import Part

_FILES: Final = 100_000
"""Of a folder; more are not looked at."""
_IN_CACHE = re.compile(r"models--([^/]+?)--([^/]+)/snapshots/([^/]+)/(.+)")
_HUB = re.compile(r"hf://(?P<repo>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?/(?P<file>.+)")
_HUB_LINK = re.compile(
    r"https://(?:www\.)?(?:huggingface\.co|hf\.co)/(?P<repo>[^/]+/[^/]+)/(?:resolve|blob)/(?P<revision>[^/]+)/"
    r"(?P<file>[^?#]+)(?:[?#].*)?"
)


class HubAddress(NamedTuple):
    """A file on the Hub. Text: `hf://owner/name@revision/path/of/file`, as the Hub's own client writes it."""

    repo: str
    revision: str | None
    file: str

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        return f"hf://{self.repo}{revision}/{self.file}"


def hub_address(text: str) -> HubAddress | None:
    """The Hub file that an address is for, also as a link to the Hub's site; None for other addresses."""
    found = _HUB.fullmatch(text) or _HUB_LINK.fullmatch(text)
    if not found or not is_hub_id(found["repo"]):
        return None
    file = unquote(found["file"])
    if ".." in PurePosixPath(file).parts or file.startswith("/"):
        return None
    return HubAddress(found["repo"], found["revision"], file)


def address_of(path: Path) -> str:
    """The address of a file: on the Hub, where it lies in the Hub's cache; else its absolute path."""
    found = _IN_CACHE.search(path.absolute().as_posix())
    if found:
        return str(HubAddress(f"{found[1]}/{found[2]}", found[3], found[4]))
    return str(path.absolute())


def config_hash(config: Mapping[str, Any] | None) -> str | None:
    """SHA-256 of the JSON beside a file, whatever its layout; None where there is none."""
    if config is None:
        return None
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def hashes_of(path: Path) -> FileHashes:
    """The hashes of a file; worked out once for as long as the file stays what it is. Raises SourceError."""
    try:
        stat = path.stat()
    except OSError as error:
        raise SourceError(f"{path.name}: cannot be read ({error.strerror}). Check the path.") from error
    return _hashes(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _hashes(path: Path, inode: int, size: int, modified: int) -> FileHashes:
    return hash_file(path)


def matches(part: Part, path: Path) -> bool:
    """Whether a file is the part's, by the hashes that the part has. False where it has none, or cannot be read."""
    try:
        return part.has_hash and mismatch(part, path) is None
    except (SourceError, OSError):
        return False


def mismatch(part: Part, path: Path) -> str | None:
    """Which hash of a file is not the part's, in words; None where none contradicts. Raises SourceError."""
    if not part.has_hash:
        return None
    if part.size is not None and part.size != path.stat().st_size:
        return f"{path.name} has {path.stat().st_size} bytes, and the recipe's file {part.size}"
    found = hashes_of(path)
    if part.sha256 is not None:
        return None if part.sha256 == found.sha256 else f"{path.name} has sha256 {found.sha256}, expected {part.sha256}"
    short = part.autov3 or ""
    known = [text for text in (found.data_sha256, found.sha256) if text]
    if any(text.startswith(short) for text in known):
        return None
    return f"{path.name} has AutoV3 {found.autov3} and AutoV2 {found.autov2}, expected {short}"


class Finder:
    """Looks for the files of parts. folder: searched with all below it. fetch: may download from the Hub."""

    def __init__(self, folder: Path | None, fetch: bool, check: bool) -> None:
        self.folder, self.fetch, self.check = folder, fetch, check

    def find(self, part: Part) -> Path | str:
        """The part's file, or why it is not to be had."""
        wrong: list[str] = []
        seen: set[Path] = set()
        for path in self._candidates(part):
            if path in seen:
                continue
            seen.add(path)
            try:
                fault = mismatch(part, path) if self.check else None
            except (SourceError, OSError) as error:
                fault = str(error)
            if fault is None:
                return path
            wrong.append(fault)
        by_hash = next((path for path in self._files if path not in seen and matches(part, path)), None)
        if by_hash is not None:
            return by_hash
        return self._remote(part, wrong)

    def _candidates(self, part: Part) -> Iterator[Path]:
        """Files that are the part's by their place or name, best first."""
        place = part.path
        # Two slashes or backslashes begin the name of another machine, which would be asked.
        if place is not None and not re.match(r"[\\/]{2}", place):
            path = Path(place)
            if _is_file(path):
                yield path
        for fold in (str, str.lower):
            for name in filter(None, (part.file, part.name)):
                for path in self._by_name.get(name.lower(), ()):
                    if fold(name) in map(fold, self._names(path)):
                        yield path

    @cached_property
    def _by_name(self) -> Mapping[str, list[Path]]:
        """Lower-case name -> the folder's files that may be called so."""
        found: dict[str, list[Path]] = {}
        for path in self._files:
            for name in {name.lower() for name in self._names(path)}:
                found.setdefault(name, []).append(path)
        return found

    def _names(self, path: Path) -> set[str]:
        """What a file of the folder may be called: its name or its path in the folder, with its ending or without."""
        inside = path.relative_to(self.folder or "")
        stem = inside.with_suffix("")
        return {inside.name, inside.as_posix(), stem.name, stem.as_posix()}

    @cached_property
    def _files(self) -> list[Path]:
        """Every file of the folder that may hold an adapter, in order of their names."""
        if self.folder is None:
            return []
        found: list[Path] = []
        for root, folders, names in os.walk(self.folder):
            folders.sort()
            found += [Path(root, name) for name in sorted(names) if name.lower().endswith(SUFFIXES)]
            if len(found) > _FILES:
                break
        return found[:_FILES]

    def _remote(self, part: Part, wrong: list[str]) -> Path | str:
        """The part's file from the Hub's cache or the Hub, or why it is not to be had."""
        address = None if part.source is None else hub_address(part.source)
        if address is not None:
            options = HubOptions(revision=address.revision, local_files_only=not self.fetch)
            try:
                path = fetch(address.repo, address.file, None, options).weights
                fault = mismatch(part, path) if self.check else None
                if fault is None:
                    return path
                wrong.append(fault)
            except SourceError as error:
                wrong.append(str(error))
        where = "it has no address"
        if part.source and part.path is None:
            # Not what follows "?": it may be a secret.
            where = f"its address is {clip(part.source.partition('?')[0])}"
            where += "" if address is None or self.fetch else " (fetch=True downloads it)"
            where += " (not on the Hub: download it and pass its folder)" if address is None else ""
        return "; ".join(wrong or ["no such file was found"]) + f"; {where}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False

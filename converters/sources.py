"""A source brought here: a local file stays where it is, any other is fetched once, to a folder that is gone after."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

from blake3 import blake3

from diffadapt.io.hub import HubOptions, fetch, revision_of, split_address
from diffadapt.io.remote import fetch_url, state_of_url
from diffadapt.io.stores import fetch_store, is_store, state_of_store

_WEB, _HUB = ("http://", "https://"), "hf://"


def is_remote(source: str) -> bool:
    """Whether a source (of a job: a Hub id has its hf://) is elsewhere."""
    return source.lower().startswith((*_WEB, _HUB)) or is_store(source)


def shown(source: str) -> str:
    """A source as reports have it: of web addresses without login and query, which may be secrets."""
    if not source.lower().startswith(_WEB):
        return source
    parts = urlsplit(source)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def file_name(source: str) -> str:
    """The last part of a source's name."""
    path = unquote(urlsplit(source).path) if source.lower().startswith(_WEB) else source
    return PurePosixPath(path).name or "adapter"


@contextmanager
def here(source: str) -> Iterator[Path]:
    """The local file of a source, for a while. Raises SourceError where it cannot be had."""
    if source.startswith(_HUB):
        repo, file = split_address(source)
        yield fetch(repo, file, None, HubOptions()).weights
    elif is_remote(source):
        # On Windows a file that is still mapped cannot be removed; the system's own cleaning has to do it.
        with tempfile.TemporaryDirectory(prefix="diffadapt-", ignore_cleanup_errors=True) as folder:
            yield fetch_store(source, Path(folder)) if is_store(source) else fetch_url(source, Path(folder))
    else:
        yield Path(source)


def state(source: str) -> tuple[int, int]:
    """Two numbers that are others when the source is another: a local file's bytes and nanoseconds of change.

    Raises OSError or SourceError where it is not there.
    """
    if not is_remote(source):
        about = Path(source).stat()
        return about.st_size, about.st_mtime_ns
    if source.startswith(_HUB):
        text = revision_of(split_address(source)[0], HubOptions())
    else:
        text = state_of_store(source) if is_store(source) else state_of_url(source)
    return 0, int(blake3(text.encode()).hexdigest()[:12], 16)

"""Headers of files that lie on a server, by HTTP range requests; the body is never downloaded.

The Hub's own client makes the requests, so that its proxies, certificates and offline switch hold. A server that
knows no ranges sends the whole file: the connection is closed where the header ends.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from diffadapt.errors import NotAnAdapterError, SourceError
from diffadapt.io import limits
from diffadapt.io.folder import gather_config
from diffadapt.io.headers import HeaderText, read_text
from diffadapt.io.hub import HubFiles, HubOptions, client_errors, locate
from diffadapt.io.plain_json import clip, read_object
from diffadapt.io.safetensors import header_bytes
from diffadapt.io.sniff import FileKind, sniff

_SECONDS = 20.0
"""Without a byte."""
_PATIENCE = 120.0
"""For a whole header: a server may not hold the reader for ever with a byte now and then."""
_PIECE = 1 << 14
_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_SAYS = {
    401: "asks for a login", 403: "refuses access", 404: "has no such file", 410: "has no such file any more",
    416: "has an empty file", 429: "has had too many requests for now",
}  # fmt: skip


class _Answer(NamedTuple):
    """A response while it streams. start: the place in the file of its first byte; size: the file's, or None."""

    start: int
    size: int | None
    pieces: Iterator[bytes]


def read_url(url: str) -> HeaderText:
    """Read the header of the safetensors file behind an http(s) address.

    Raises SourceError where the server does not give it, NotAnAdapterError where the bytes are something else,
    UnsafeFileError for a header beyond the limit.
    """
    return _read(url, _name_of(url), _hub_headers(url), None)


def read_hub(repo: str, weight_name: str | None = None, options: HubOptions | None = None) -> HeaderText:
    """Read the header of a Hub repository's adapter file, and its configs; a local file's where the Hub is out of
    reach. Errors as for `read_url`, and SourceError where several files could be meant."""
    options = options or HubOptions()
    found = locate(repo, weight_name, options)
    if isinstance(found, HubFiles):
        if sniff(found.weights, repo) is not FileKind.SAFETENSORS:
            raise SourceError(f"{repo}: is a pickle, which has no header. Read the file itself.")
        return read_text(found.weights, repo)
    config = gather_config(tuple(found.configs), lambda name: read_object(found.configs[name], repo))
    return _read(found.url, f"{repo}/{found.name}", _hub_headers(found.url, options), config)


def fetch_url(url: str, folder: Path) -> Path:
    """Bring the file behind an http(s) address into a folder, read once from its beginning to its end.

    Raises SourceError where the server does not give it whole.
    """
    from huggingface_hub.utils import get_session

    name = _name_of(url)
    asked = {**_hub_headers(url), "Accept-Encoding": "identity"}
    target, got = folder / name, 0
    try:
        with _stream(get_session(), url, asked) as response, target.open("wb") as file:
            _refuse_status(response.status_code, name)
            expected = response.headers.get("content-length", "")
            for piece in response.pieces():
                got += file.write(piece)
    except client_errors() as error:
        raise SourceError(
            f"{name}: could not be fetched ({type(error).__name__}). Check the address and the network."
        ) from error
    if expected.isdecimal() and got != int(expected):
        raise SourceError(f"{name}: the answer ends after {got} bytes, expected {expected}. Try again.")
    return target


def state_of_url(url: str) -> str:
    """A text that is another when the file behind an address is another, by the headers of one byte's answer."""
    from huggingface_hub.utils import get_session

    name = _name_of(url)
    try:
        with _stream(get_session(), url, {**_hub_headers(url), "Range": "bytes=0-0"}) as response:
            _refuse_status(response.status_code, name)
            told = response.headers
            return " ".join(told.get(key, "") for key in ("etag", "last-modified", "content-range"))
    except client_errors() as error:
        raise SourceError(f"{name}: the server could not be read ({type(error).__name__}).") from error


def _refuse_status(status: int, name: str) -> None:
    if status not in (200, 206):
        what = _SAYS.get(status, f"answers with status {status}")
        raise SourceError(f"{name}: the server {what}. Check the address, or download the file and pass its path.")


def _name_of(url: str) -> str:
    """The file's name, for messages: the address itself may hold a secret."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 (which may be no number)
    except ValueError as error:
        raise SourceError(
            f"{clip(url, 60)}: is no address ({error}). Expected https://host/file.safetensors."
        ) from None
    if parts.scheme.lower() not in ("http", "https") or not parts.hostname:
        raise SourceError(f"{clip(url, 60)}: is no http(s) address of a file. Expected https://host/file.safetensors.")
    name = PurePosixPath(unquote(parts.path)).name
    return name if name and name.isprintable() else parts.hostname


def _hub_headers(url: str, options: HubOptions | None = None) -> dict[str, str]:
    """The Hub's own headers, with the token, for the Hub's addresses only."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers

    own = urlsplit(url)[:2] == urlsplit(constants.ENDPOINT)[:2]
    return dict(build_hf_headers(token=options.token if options else None)) if own else {}


def _read(url: str, name: str, headers: Mapping[str, str], config: Mapping[str, Any] | None) -> HeaderText:
    """The length first, then exactly the header: two small requests, or one cut short."""
    try:
        with _open(url, name, headers, 0, 8) as answer:
            prefix, pieces = _take(answer.pieces, 8, name)
            _refuse_other(prefix, name)
            size = answer.size
            length = header_bytes(prefix, limits.ELEMENTS if size is None else size, name)
            text, _ = _take(pieces, length, name, short=True)
        if len(text) < length:
            # The server kept to the range.
            at = 8 + len(text)
            with _open(url, name, headers, at, 8 + length) as answer:
                before = at - answer.start
                rest, _ = _take(answer.pieces, before + length - len(text), name)
                text += rest[before:]
    except client_errors() as error:
        raise SourceError(
            f"{name}: the server could not be read ({type(error).__name__}). Check the address and the network."
        ) from error
    return HeaderText(text, size, name, config)


@contextmanager
def _open(url: str, name: str, headers: Mapping[str, str], start: int, stop: int) -> Iterator[_Answer]:
    """Ask for `start:stop`, and check what the server says of its answer."""
    from huggingface_hub.utils import get_session

    asked = {**headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    with _stream(get_session(), url, asked) as response:
        status, told = response.status_code, response.headers
        _refuse_status(status, name)
        if told.get("content-encoding", "identity") not in ("identity", ""):
            raise SourceError(f"{name}: the server compresses the file. Download it and pass its path.")
        place = _RANGE.match(told.get("content-range", "")) if status == 206 else None
        if status == 206 and (place is None or int(place[1]) != start):
            raise SourceError(f"{name}: the server gives another part of the file than bytes {start}-{stop - 1}.")
        size = place[2] if place is not None else told.get("content-length", "*")
        yield _Answer(
            start if status == 206 else 0, int(size) if size.isdecimal() else None, _in_time(response.pieces(), name)
        )


class _Response(NamedTuple):
    """What two generations of the Hub's client have in common."""

    status_code: int
    headers: Mapping[str, str]
    pieces: Any


@contextmanager
def _stream(session: Any, url: str, headers: Mapping[str, str]) -> Iterator[_Response]:
    """A streamed GET with the Hub's client: httpx since its version 1, requests before."""
    if callable(getattr(session, "stream", None)):
        with session.stream("GET", url, headers=headers, follow_redirects=True, timeout=_SECONDS) as response:
            yield _Response(response.status_code, response.headers, lambda: response.iter_raw(_PIECE))
        return
    with session.get(url, headers=headers, stream=True, timeout=_SECONDS) as response:
        yield _Response(response.status_code, response.headers, lambda: response.iter_content(_PIECE))


def _in_time(pieces: Iterator[bytes], name: str) -> Iterator[bytes]:
    """The pieces, as long as the patience lasts."""
    end = time.monotonic() + _PATIENCE
    for piece in pieces:
        yield piece
        if time.monotonic() > end:
            raise SourceError(f"{name}: the server is too slow. Try again, or download the file.")


def _take(pieces: Iterator[bytes], count: int, name: str, short: bool = False) -> tuple[bytes, Iterator[bytes]]:
    """The first `count` bytes, and what is left to read. short: fewer are no error."""
    taken = bytearray()
    for piece in pieces if count else ():
        taken += piece
        if len(taken) >= count:
            break
    if len(taken) < count and not short:
        raise SourceError(f"{name}: the answer ends after {len(taken)} bytes, expected {count}. Try again.")
    return bytes(taken[:count]), _chain(bytes(taken[count:]), pieces)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest


def _refuse_other(prefix: bytes, name: str) -> None:
    """Name what the first bytes show to be no safetensors file."""
    if prefix.lstrip().startswith(b"<"):
        raise NotAnAdapterError(f"{name}: is a web page, expected a safetensors file. Use the file's direct link.")
    if prefix.startswith((b"PK\3\4", b"\x80\2", b"\x80\4")):
        raise SourceError(f"{name}: is a pickle, which has no header to look at. Download the file and pass its path.")

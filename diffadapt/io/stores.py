"""Files in buckets and other stores, opened by fsspec: s3://bucket/style.safetensors, gs://, az://, memory:// ...

What a scheme needs beside fsspec (s3fs, gcsfs, ...) is the user's to install; its name is in the error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from diffadapt.errors import DiffAdaptError, SourceError
from diffadapt.io import limits
from diffadapt.io.folder import CONFIG_OF, is_weights
from diffadapt.io.headers import HeaderText
from diffadapt.io.plain_json import clip
from diffadapt.io.safetensors import header_bytes

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_FIRST = 1 << 16
"""What is read at once: the whole header of most adapters."""


def is_store(text: str) -> bool:
    """Whether a text is an address for fsspec: a scheme, but for those that have readers of their own here."""
    found = _SCHEME.match(text)
    return found is not None and found[1].lower() not in ("http", "https", "hf", "file", "local")


def listed(address: str) -> list[str]:
    """The addresses of all weights that an address means: a file, a pattern, or a folder with all below it."""
    with _trouble(address):
        files, path = _opened(address)
        if any(sign in path for sign in "*?["):
            names = files.glob(path)
        else:
            names = [path] if files.isfile(path) else files.find(path)
        # A host stands in the address and not in the names.
        whole = address.rstrip("/")
        head = whole.removesuffix(path) if whole.endswith(path) else None
        found = [name for name in sorted(names) if is_weights(PurePosixPath(name).name)]
        return [files.unstrip_protocol(name) if head is None else head + name for name in found]


def read_store(address: str) -> HeaderText:
    """Read the header of a safetensors file, in one or two requests. Errors as for `remote.read_url`."""
    name = _name(address)
    with _trouble(address):
        files, path = _opened(address)
        text = files.cat_file(path, start=0, end=_FIRST)
        size = files.size(path)
        length = header_bytes(text[:8], limits.ELEMENTS if size is None else size, name)
        if 8 + length > len(text):
            text += files.cat_file(path, start=len(text), end=8 + length)
    return HeaderText(text[8 : 8 + length], size, name)


def fetch_store(address: str, folder: Path) -> Path:
    """Bring a file, and the config beside it, into a folder; each is read once, from its beginning to its end."""
    with _trouble(address):
        files, path = _opened(address)
        target = folder / PurePosixPath(path).name
        files.get_file(path, str(target))
        config = CONFIG_OF.get(target.stem)
        if config is not None and files.isfile(beside := str(PurePosixPath(path).with_name(config))):
            files.get_file(beside, str(folder / config))
    return target


def state_of_store(address: str) -> str:
    """A text that is another when the file is another."""
    with _trouble(address):
        files, path = _opened(address)
        return str(files.ukey(path))


def _name(address: str) -> str:
    return PurePosixPath(address.rpartition("://")[2]).name or address


def _opened(address: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    files, path = url_to_fs(address)
    return files, path


@contextmanager
def _trouble(address: str) -> Iterator[None]:
    """Say what a store met in our own words. Every kind of store has exceptions of its own, so all are caught."""
    name = _name(address)
    try:
        yield
    except DiffAdaptError:
        raise
    except ImportError as error:
        raise SourceError(f"{name}: {clip(str(error))} Install that package, or pass a local file.") from error
    except FileNotFoundError as error:
        raise SourceError(f"{name}: the store has no such file. Check the address.") from error
    except Exception as error:
        raise SourceError(
            f"{name}: the store could not be read ({type(error).__name__}). Check the address and your access."
        ) from error

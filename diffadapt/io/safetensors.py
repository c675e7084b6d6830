"""Safetensors files: a header parser that trusts nothing, and tensors mapped lazily."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from diffadapt.errors import SourceError, UnsafeFileError
from diffadapt.io import limits
from diffadapt.io.dtypes import DTYPES, count_bytes
from diffadapt.io.mapped import MappedTensors, TensorInfo, map_file
from diffadapt.io.plain_json import clip, parse_object
from diffadapt.io.safetensors_writer import write_safetensors

__all__ = ["SafetensorsHeader", "read_header", "read_safetensors", "write_safetensors"]

_FIELDS = {"dtype", "shape", "data_offsets"}
_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


class SafetensorsHeader(NamedTuple):
    """What a file says about its tensors, in the order of their data; `data_start` and `file_bytes` count bytes."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    data_start: int
    file_bytes: int


def read_header(path: str | os.PathLike[str], name: str | None = None) -> SafetensorsHeader:
    """Read and check the header of a safetensors file; the tensors' data are not touched.

    `name` stands for the file in messages (default: the file's own name). Raises `SourceError` for a damaged file and
    `UnsafeFileError` for one that breaks a limit or contradicts itself.
    """
    path = Path(path)
    with open_binary(path, name or path.name) as file:
        return _header(file, name or path.name)


def read_safetensors(path: str | os.PathLike[str], name: str | None = None) -> tuple[MappedTensors, Mapping[str, str]]:
    """Map a safetensors file: its tensors as lazily made views, and its metadata. Errors as for `read_header`."""
    path = Path(path)
    with open_binary(path, name or path.name) as file:
        header = _header(file, name or path.name)
        return MappedTensors(map_file(file, name or path.name), header.data_start, header.tensors), header.metadata


def open_binary(path: Path, name: str) -> BinaryIO:
    """Open a regular file for reading; whatever keeps it from being read is a `SourceError`."""
    try:
        if path.exists() and not path.is_file():
            raise SourceError(f"{name}: is not a regular file. Expected an adapter file.")
        return path.open("rb")
    except OSError as error:
        raise SourceError(f"{name}: cannot be opened ({error.strerror}). Check path and permissions.") from error


def _header(file: BinaryIO, name: str) -> SafetensorsHeader:
    """Parse the header of an open file."""
    file_bytes = os.fstat(file.fileno()).st_size
    text = file.read(header_bytes(file.read(8), file_bytes, name))
    return parse_header(text, file_bytes, name)


def header_bytes(prefix: bytes, file_bytes: int, name: str) -> int:
    """How long the header is that follows the file's first 8 bytes; checked against the limit and the file's size."""
    if len(prefix) < 8:
        raise SourceError(f"{name}: {file_bytes} bytes are too few for a safetensors file. Download it again.")
    (length,) = struct.unpack("<Q", prefix)
    if length > limits.HEADER_BYTES:
        raise UnsafeFileError(
            f"{name}: the header claims {length} bytes, at most {limits.HEADER_BYTES} are read. "
            "This is no safetensors adapter, or its metadata are not sane."
        )
    if 8 + length > file_bytes:
        raise SourceError(
            f"{name}: truncated: the header needs {8 + length} bytes, the file has {file_bytes}. Download it again."
        )
    return int(length)


def parse_header(text: bytes, file_bytes: int | None, name: str) -> SafetensorsHeader:
    """Check a header's text (what follows the first 8 bytes); see `read_header`.

    file_bytes: the size of the file, None where a server does not tell it: the data's end stays unchecked then.
    """
    start = 8 + len(text)
    if not text.startswith(b"{"):
        raise SourceError(f"{name}: the header starts with {text[:8]!r}, expected '{{'. This is no safetensors file.")
    entries = parse_object(text, name, "header")
    metadata = check_metadata(entries.pop("__metadata__", None), name)
    if len(entries) > limits.TENSORS:
        raise UnsafeFileError(f"{name}: {len(entries)} tensors, at most {limits.TENSORS} are read. This is no adapter.")
    infos = {key: _info(key, entry, name) for key, entry in entries.items()}
    ordered = dict(sorted(infos.items(), key=lambda item: item[1][2:]))
    end = max((info.stop for info in ordered.values()), default=0)
    _check_layout(ordered, end if file_bytes is None else file_bytes - start, name)
    return SafetensorsHeader(ordered, metadata, start, start + end)


def check_metadata(value: Any, name: str) -> dict[str, str]:
    """Check the `__metadata__` object: strings to strings."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SourceError(f"{name}: __metadata__ is a {type(value).__name__}, expected an object of strings.")
    for key, text in value.items():
        if not isinstance(text, str):
            raise SourceError(
                f"{name}: metadata {clip(key)} is a {type(text).__name__}, expected a string as the format demands. "
                "Write the file again with the safetensors library."
            )
        if not (key.isascii() and text.isascii()) and (_SURROGATE.search(key) or _SURROGATE.search(text)):
            raise SourceError(f"{name}: metadata {clip(key)} holds half a surrogate pair, which is no valid text.")
    return value


def _info(key: str, entry: Any, name: str) -> TensorInfo:
    """Check one tensor's entry by itself: fields, types, and that shape times item size is the byte range."""
    if len(key) > limits.KEY_CHARACTERS or _CONTROL.search(key):
        raise UnsafeFileError(
            f"{name}: key {clip(key)} has {len(key)} characters or holds control characters. Expected a module path."
        )
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise SourceError(f"{name}: the entry of {clip(key)} is malformed, expected dtype, shape, data_offsets.")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise SourceError(
            f"{name}: {clip(key)} has dtype {_say(entry['dtype'])}, expected one of {', '.join(DTYPES)}. "
            "Convert the file to one of these."
        )
    shape, offsets = entry["shape"], entry["data_offsets"]
    # type() and not isinstance: JSON's true is an int to Python.
    if type(shape) is not list or len(shape) > limits.DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise SourceError(f"{name}: {clip(key)} has shape {_say(shape)}, expected a short list of integers >= 0.")
    if type(offsets) is not list or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise SourceError(f"{name}: {clip(key)} has data_offsets {_say(offsets)}, expected two integers.")
    start, stop = offsets
    if not 0 <= start <= stop:
        raise UnsafeFileError(f"{name}: {clip(key)} has data_offsets {_say(offsets)}, expected 0 <= start <= stop.")
    if count_bytes(shape, dtype) != stop - start:
        raise UnsafeFileError(
            f"{name}: {clip(key)}: shape {_say(shape)} of {entry['dtype']} does not fill the {stop - start} bytes "
            "of its data_offsets. The file is damaged or forged: get it from its author again."
        )
    return TensorInfo(dtype, tuple(shape), start, stop)


def _check_layout(infos: Mapping[str, TensorInfo], data_bytes: int, name: str) -> None:
    """Check that the byte ranges, in order, cover the data section without gap, overlap or rest."""
    end = 0
    for key, info in infos.items():
        if info.start != end:
            what = "overlaps the tensor before it" if info.start < end else "leaves a gap before it"
            raise UnsafeFileError(
                f"{name}: the data of {clip(key)} start at byte {info.start}, expected {end}: it {what}. "
                "The file is forged or was written by a broken tool; do not use it."
            )
        end = info.stop
    if end > data_bytes:
        raise SourceError(
            f"{name}: truncated: the tensors need {end} bytes of data, the file has {data_bytes}. Download it again."
        )
    if end < data_bytes:
        raise UnsafeFileError(
            f"{name}: {data_bytes - end} bytes follow the last tensor, expected none. Damaged, or hiding data."
        )


def _say(value: Any) -> str:
    """Show a JSON value of unknown size without building its whole text."""
    if isinstance(value, list):
        return "[" + ", ".join(_say(item) for item in value[:8]) + (", ...]" if len(value) > 8 else "]")
    if isinstance(value, dict):
        return "an object"
    return clip(value, 40)

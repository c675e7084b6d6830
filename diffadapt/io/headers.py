"""A safetensors file by its header alone: what it holds is known by name, type and shape, and its data stay where
they are. Of local files the few bytes of scalars (alpha) are read too, because they cost nothing and say much.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffadapt.errors import SourceError
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.folder import LYCORIS_CONFIG, PEFT_CONFIG, choose, gather_config
from diffadapt.io.mapped import TensorInfo
from diffadapt.io.plain_json import leading_object, read_object
from diffadapt.io.safetensors import SafetensorsHeader, check_metadata, header_bytes, open_binary, parse_header

_OPENING = b'{"__metadata__":'
SMALL_BYTES = 64
"""Tensors up to this size are scalars, flags and shapes: what algorithms ask the values of."""
_LARGE = 1 << 26
"""Stand-ins of more elements have no storage at all, so that no operation on them can cost memory."""


class Small(NamedTuple):
    """A tensor whose bytes are read with the header: `start:stop` in the data section."""

    key: str
    start: int
    stop: int


@dataclass(frozen=True)
class HeaderText:
    """A header as it was read, unchecked but for its length.

    text: what follows the file's first 8 bytes. file_bytes: None where a server does not tell. config: the JSON beside
    the file (see RawCheckpoint). name: for messages. path: the local file, None for a remote one.
    """

    text: bytes
    file_bytes: int | None
    name: str
    config: Mapping[str, Any] | None = None
    path: Path | None = None

    def parts(self) -> tuple[Mapping[str, str] | None, bytes]:
        """The metadata, checked, and the text without them, which is equal for files of equal tensors.

        Where there are none, or not in front, None and the whole text: `parse` finds them, and what is wrong with them.
        """
        if self.text.startswith(_OPENING):
            try:
                found = leading_object(self.text.decode(), len(_OPENING))
            except UnicodeDecodeError:
                found = None
            if found is not None:
                metadata, end = check_metadata(found[0], self.name), found[1]
                # The end counts characters, and all but a few headers are ASCII.
                rest = self.text[end:] if self.text.isascii() else self.text.decode()[end:].encode()
                return metadata, rest
        return None, self.text

    def parse(self) -> SafetensorsHeader:
        """The header, checked in full; errors as for `read_header`."""
        return parse_header(self.text, self.file_bytes, self.name)

    def checkpoint(self, header: SafetensorsHeader, small: Mapping[str, bytes]) -> RawCheckpoint:
        """A checkpoint of stand-ins. small: the bytes of the small tensors, empty where nobody read them."""
        tensors = {key: _tensor(info, small.get(key)) for key, info in header.tensors.items()}
        return RawCheckpoint(tensors, header.metadata, self.config, self.name, self.path)


def read_text(path: Path, name: str | None = None) -> HeaderText:
    """Read a local file's header, and the config beside it. Errors as for `read_header`."""
    name = name or path.name
    with open_binary(path, name) as file:
        size = path.stat().st_size
        text = file.read(header_bytes(file.read(8), size, name))
    return HeaderText(text, size, name, config_beside(path), path)


def small_tensors(infos: Mapping[str, TensorInfo]) -> tuple[Small, ...]:
    """The tensors that are read with the header, in the order of their data."""
    return tuple(
        Small(key, info.start, info.stop) for key, info in infos.items() if info.stop - info.start <= SMALL_BYTES
    )


def read_small(path: Path, data_start: int, small: Iterable[Small]) -> bytes:
    """The bytes of the small tensors, one after the other; `SourceError` where the file ends before them."""
    wanted = list(small)
    # Unbuffered: a buffer would read kilobytes around each scalar.
    with path.open("rb", buffering=0) as file:
        pieces = []
        for start, stop in _runs(wanted):
            file.seek(data_start + start)
            pieces.append(file.read(stop - start))
    joined = b"".join(pieces)
    if len(joined) != sum(one.stop - one.start for one in wanted):
        raise SourceError(f"{path.name}: became shorter while it was read. Try again.")
    return joined


def by_key(small: Iterable[Small], joined: bytes) -> dict[str, bytes]:
    """The bytes of each small tensor, from those of all."""
    found: dict[str, bytes] = {}
    place = 0
    for one in small:
        found[one.key] = joined[place : (place := place + one.stop - one.start)]
    return found


def _runs(small: Iterable[Small]) -> Iterator[tuple[int, int]]:
    """Byte ranges, those that touch as one: some writers put all scalars side by side."""
    first: int | None = None
    last = 0
    for one in small:
        if first is not None and one.start != last:
            yield first, last
            first = None
        first = one.start if first is None else first
        last = one.stop
    if first is not None:
        yield first, last


def _tensor(info: TensorInfo, data: bytes | None) -> Tensor:
    """The tensor itself where its bytes are known, else one of its type and shape, all zeros and without storage."""
    if data:
        return torch.frombuffer(bytearray(data), dtype=info.dtype).view(info.shape)
    return stand_in(info.dtype, info.shape)


@lru_cache(maxsize=4096)
def stand_in(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """A tensor of zeros without storage, shared by all of a type and shape: nothing writes into what was read."""
    if torch.Size(shape).numel() > _LARGE:
        return torch.empty(shape, dtype=dtype, device="meta")
    return torch.zeros(dtype.itemsize, dtype=torch.uint8).view(dtype).reshape(()).expand(shape)


def config_beside(path: Path) -> Mapping[str, Any] | None:
    """The config files that belong to a local file, by the rule of `folder.choose`."""
    # Two look-ups for each of thousands of files in one folder, in place of listing it for each.
    if not any((path.parent / name).is_file() for name in (PEFT_CONFIG, LYCORIS_CONFIG)):
        return None
    siblings = {entry.name for entry in path.parent.iterdir()}
    configs = choose({path.name, *siblings}, path.name, path.name).configs
    return gather_config(configs, lambda name: read_object(path.parent / name, path.name))

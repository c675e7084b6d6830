"""A safetensors file by its header alone: what it holds is known by name, type and shape, and its data stay where
they are. Of local files the few bytes of scalars (alpha) are read too, because they cost nothing and say much.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from io import RawIOBase
from pathlib import Path
from types import MappingProxyType
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
_PADDING = b" "
"""Behind the header, so that the data start at a multiple of 8."""
_SMALL_BYTES = 64
"""Tensors up to this size are scalars, flags and shapes: what algorithms ask the values of."""
_LARGE = 1 << 26
"""Stand-ins of more elements have no storage at all, so that no operation on them can cost memory."""


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
                return metadata, rest.rstrip(_PADDING)
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


_ALPHA, _NUMBERS = ".alpha", re.compile(r"\d+")


class Small(NamedTuple):
    """The tensors that are read with the header: their keys and bytes each, and where they lie in the data section.

    runs: byte ranges; those of neighbours are one. total: bytes of all. alike: keys that are not read -> the key whose
    bytes stand for theirs.
    """

    sizes: tuple[tuple[str, int], ...]
    runs: tuple[tuple[int, int], ...]
    total: int
    alike: Mapping[str, str] = MappingProxyType({})

    def by_key(self, joined: bytes) -> dict[str, bytes]:
        """The bytes of each tensor, from those of all."""
        found: dict[str, bytes] = {}
        place = 0
        for key, size in self.sizes:
            found[key] = joined[place : (place := place + size)]
        return found | {key: found[other] for key, other in self.alike.items()}


def small_tensors(infos: Mapping[str, TensorInfo], sampled: bool = False) -> Small:
    """The scalars, flags and shapes among the tensors. infos: in the order of the data.

    sampled: of alphas that differ in nothing but the numbers in their names and belong to one rank, the first stands
    for all. They lie far apart, each a page of the disk of its own: for thousands of files that is what takes long.
    """
    sizes: list[tuple[str, int]] = []
    runs: list[tuple[int, int]] = []
    first: dict[tuple[str, int | None], str] = {}
    alike: dict[str, str] = {}
    for key, info in infos.items():
        if info.stop - info.start > _SMALL_BYTES:
            continue
        if sampled and key.endswith(_ALPHA):
            other = first.setdefault((_NUMBERS.sub("#", key), _rank_of(key, infos)), key)
            if other != key:
                alike[key] = other
                continue
        sizes.append((key, info.stop - info.start))
        joins = runs and runs[-1][1] == info.start
        runs[-1:] = [(runs[-1][0], info.stop)] if joins else [*runs[-1:], (info.start, info.stop)]
    return Small(tuple(sizes), tuple(runs), sum(size for _, size in sizes), alike)


def _rank_of(alpha: str, infos: Mapping[str, TensorInfo]) -> int | None:
    """The rank of an alpha's module, where it is a LoRA's."""
    module = alpha.removesuffix(_ALPHA)
    down = infos.get(f"{module}.lora_down.weight") or infos.get(f"{module}.lora_A.weight")
    return down.shape[0] if down is not None and down.shape else None


def read_small(path: Path, data_start: int, small: Small) -> bytes:
    """The bytes of the small tensors, one after the other; `SourceError` where the file ends before them."""
    with path.open("rb", buffering=0) as file:
        number = file.fileno()
        if hasattr(os, "posix_fadvise"):
            # Or the system reads ahead, a hundred kilobytes for every scalar.
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)
        if hasattr(os, "pread"):
            pieces = [os.pread(number, stop - start, data_start + start) for start, stop in small.runs]
        else:
            pieces = [_read_at(file, data_start + start, stop - start) for start, stop in small.runs]
    joined = b"".join(pieces)
    if len(joined) != small.total:
        raise SourceError(f"{path.name}: became shorter while it was read. Try again.")
    return joined


def _read_at(file: RawIOBase, place: int, count: int) -> bytes:
    file.seek(place)
    return file.read(count) or b""


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

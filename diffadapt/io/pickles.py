"""Pickled checkpoints (.pt, .bin, .ckpt, .pth): torch's zip layout, its older stream, and bare pickles.

Neither torch's loader nor Python's unpickler takes part: see `unpickler` for the machine, `pickle_objects` for all that
a pickle may name. Tensors are views of the mapped file where their data are aligned.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diffadapt.errors import NotAnAdapterError, SourceError, UnsafeFileError
from diffadapt.io import limits
from diffadapt.io.archive import Member, read_members
from diffadapt.io.dtypes import count_bytes
from diffadapt.io.mapped import map_file, view_bytes
from diffadapt.io.pickle_objects import StorageRef, TensorRef
from diffadapt.io.plain_json import clip
from diffadapt.io.safetensors import open_binary
from diffadapt.io.unpickler import BoundedReader, Unpickler

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ALIASING = 8
"""Tied weights share a storage; more than this many times the file in tensors is an attack on whoever copies them."""


class PickledCheckpoint(NamedTuple):
    """The tensors of a pickle by dotted key, and the plain values beside them as text."""

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, str]


class _Located(NamedTuple):
    """An unpickled value, and where in the file each storage's data lie."""

    value: Any
    storages: Mapping[str, Member]


def read_pickle(path: str | os.PathLike[str], name: str | None = None) -> PickledCheckpoint:
    """Read a pickled checkpoint of any of torch's layouts without running anything.

    Nested mappings become dotted keys (`string_to_param.*`); a lone `state_dict` around everything is taken off.
    `name` stands for the file in messages. Raises `UnsafeFileError` (naming the foreign global, where it is one),
    `SourceError` for a damaged file, `NotAnAdapterError` where there is no tensor.
    """
    path = Path(path)
    source = name or path.name
    with open_binary(path, source) as file:
        if not os.fstat(file.fileno()).st_size:
            raise SourceError(f"{source}: is empty (0 bytes). Download it again.")
        buffer = map_file(file, source)
    with memoryview(buffer) as data:
        located = _read_archive(data, source) if bytes(data[:4]) == b"PK\3\4" else _read_stream(data, source)
    references, metadata = _flatten(located.value, source)
    if not references:
        raise NotAnAdapterError(f"{source}: the pickle holds no tensors by name. Expected an adapter's weights.")
    return PickledCheckpoint(_build(buffer, references, located.storages, source), metadata)


def _read_archive(data: memoryview, source: str) -> _Located:
    """Read torch's zip layout: one folder with data.pkl, data/<key> and possibly byteorder."""
    members = read_members(data, source)
    pickles = [member for member in members if member.count("/") == 1 and member.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise NotAnAdapterError(
            f"{source}: a zip archive without one data.pkl in its top folder ({len(members)} members). "
            "If the adapter is inside, unpack the archive first."
        )
    root = pickles[0].removesuffix("data.pkl")
    order = members.get(root + "byteorder")
    if order and bytes(data[order.start : min(order.stop, order.start + 16)]).strip() != b"little":
        raise SourceError(f"{source}: its tensors are not little-endian. Save it again on a common machine.")
    place = members[pickles[0]]
    if place.stop - place.start > limits.PICKLE_BYTES:
        raise UnsafeFileError(f"{source}: data.pkl has more than {limits.PICKLE_BYTES} bytes. This is no adapter.")
    value = Unpickler(BoundedReader(data[place.start : place.stop]), source).load()
    prefix = root + "data/"
    return _Located(value, {key.removeprefix(prefix): m for key, m in members.items() if key.startswith(prefix)})


def _read_stream(data: memoryview, source: str) -> _Located:
    """Read torch's older layout (magic, protocol, system, value, storage keys, raw data), or a bare pickle."""
    reader = BoundedReader(data)
    first = Unpickler(reader, source).load()
    if first != _MAGIC:
        return _Located(first, {})
    protocol, system = Unpickler(reader, source).load(), Unpickler(reader, source).load()
    machine = Unpickler(reader, source)
    value, keys = machine.load(), Unpickler(reader, source).load()
    if protocol != _PROTOCOL or not isinstance(system, dict) or not isinstance(keys, list):
        raise SourceError(f"{source}: its torch header is none that is known (protocol {clip(protocol)}).")
    if system.get("little_endian") is not True:
        raise SourceError(f"{source}: its tensors are not little-endian. Save it again on a common machine.")
    return _Located(value, _storages(data, reader.tell(), keys, machine.storages, source))


def _storages(
    data: memoryview, place: int, keys: list[Any], references: Mapping[str, StorageRef], source: str
) -> dict[str, Member]:
    """Find the raw storages of the older layout: for each key its element count (int64) and then the data."""
    found: dict[str, Member] = {}
    for key in keys:
        reference = references.get(str(key)) if type(key) in (str, int) else None
        if reference is None or reference.key in found:
            raise SourceError(f"{source}: a storage belongs to no tensor or comes twice. The pickle is damaged.")
        if place + 8 > len(data):
            raise SourceError(f"{source}: truncated: a storage lies behind byte {len(data)}. Download it again.")
        (count,) = struct.unpack_from("<q", data, place)
        width = 1 if reference.dtype is None else reference.dtype.itemsize
        start, stop = place + 8, place + 8 + count * width
        if count < 0 or stop > len(data):
            raise SourceError(f"{source}: truncated: {stop} bytes are needed, it has {len(data)}. Download it again.")
        found[reference.key] = Member(start, stop)
        place = stop
    return found


def _flatten(value: Any, source: str) -> tuple[dict[str, TensorRef], dict[str, str]]:
    """Name every tensor by the dotted path of keys to it; collect plain values beside them as text."""
    while isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise NotAnAdapterError(
            f"{source}: the pickle holds a {type(value).__name__}, expected a mapping of names to tensors."
        )
    references: dict[str, TensorRef] = {}
    metadata: dict[str, str] = {}
    waiting: list[tuple[str, Any, int]] = [("", value, 0)]
    visited = 0
    while waiting:
        prefix, mapping, depth = waiting.pop()
        visited += len(mapping)
        if depth > limits.PICKLE_DEPTH or visited > limits.TENSORS:
            raise UnsafeFileError(f"{source}: the pickle is nested too deeply or too wide. Expected named tensors.")
        for key, item in mapping.items():
            name = f"{prefix}{key}"
            if len(name) > limits.KEY_CHARACTERS or not name.isprintable():
                raise UnsafeFileError(
                    f"{source}: key {clip(name)} is too long or not printable. Expected a module path."
                )
            if isinstance(item, dict):
                waiting.append((name + ".", item, depth + 1))
            elif isinstance(item, TensorRef):
                if name in references:
                    raise SourceError(f"{source}: two tensors are both called {clip(name)}. Expected distinct names.")
                references[name] = item
            elif isinstance(item, str | int | float):
                metadata[name] = str(item)[: limits.METADATA_CHARACTERS]
    return references, metadata


def _build(
    buffer: mmap.mmap, references: Mapping[str, TensorRef], storages: Mapping[str, Member], source: str
) -> dict[str, torch.Tensor]:
    """Make the tensors: one flat view (or copy, where unaligned) per storage and dtype, windows of it per tensor."""
    total = sum(count_bytes(reference.shape, reference.dtype) for reference in references.values())
    if total > _ALIASING * len(buffer):
        raise UnsafeFileError(
            f"{source}: {total} bytes of tensors share a file of {len(buffer)}. The pickle is forged."
        )
    flats: dict[tuple[str, torch.dtype], torch.Tensor] = {}
    tensors: dict[str, torch.Tensor] = {}
    for key, reference in references.items():
        storage = reference.storage
        place = (storage.key, reference.dtype)
        if place not in flats:
            flats[place] = _storage_view(buffer, storage, storages.get(storage.key), reference.dtype, source)
        flat = flats[place]
        reach = reference.offset + sum((n - 1) * s for n, s in zip(reference.shape, reference.stride, strict=True)) + 1
        if 0 not in reference.shape and reach > flat.numel():
            raise UnsafeFileError(f"{source}: {clip(key)} reaches behind its storage. The pickle is forged or damaged.")
        if 0 in reference.shape:
            tensors[key] = torch.empty(reference.shape, dtype=reference.dtype)
        else:
            tensors[key] = torch.as_strided(flat, reference.shape, reference.stride, reference.offset)
    return tensors


def _storage_view(
    buffer: mmap.mmap, storage: StorageRef, member: Member | None, dtype: torch.dtype, source: str
) -> torch.Tensor:
    """Map one storage as a flat tensor of `dtype`, after checking that the file has all the bytes it claims."""
    if member is None or member.stop - member.start < storage.nbytes:
        has = "nothing" if member is None else f"{member.stop - member.start} bytes"
        raise SourceError(
            f"{source}: storage {clip(storage.key)} should have {storage.nbytes} bytes, the file has {has}. "
            "The file is damaged or truncated: download it again."
        )
    return view_bytes(buffer, member.start, storage.nbytes // dtype.itemsize * dtype.itemsize, dtype)

"""Writing safetensors: equal tensors and metadata give equal bytes, and a file is either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import torch

from diffadapt.errors import SourceError
from diffadapt.io.dtypes import DTYPES
from diffadapt.io.mapped import MappedTensors
from diffadapt.io.plain_json import clip

PART = ".part"
"""The ending of a file that is being written."""
_BLOCK = 1 << 22
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}


Seal: TypeAlias = "Callable[[], Mapping[str, str]]"
"""Gives a file's metadata when its data are written: what is known only then has its room kept until then."""


class Copied(NamedTuple):
    """An open file, and the tensors that are mapped from it: their bytes are copied by the system, not by us."""

    file: BinaryIO
    tensors: MappedTensors


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    copied: Copied | None = None,
    seal: Seal | None = None,
) -> None:
    """Write `tensors` (any device, any strides) and `metadata` to `path`, replacing a file there in one step.

    The data are laid out as the safetensors library does (wide dtypes first, then by key); metadata keys are sorted,
    which the library does not do, so that equal content gives equal bytes. A mapped source at `path` keeps its data.
    seal: gives the metadata that take the place of `metadata`, as long as they are, once the data are written.
    Raises `SourceError` for values a file cannot hold and for a folder that cannot be written.
    """
    path = Path(path)
    ordered = ordered_tensors(tensors, path.name)
    header = header_of(ordered, _checked(metadata or {}, path.name))

    def write(file: BinaryIO) -> None:
        file.write(header)
        for tensor in ordered.values() if copied is None else _copy(file, ordered, copied):
            file.write(data_of(tensor))
        if seal is not None:
            sealed = header_of(ordered, _checked(seal(), path.name))
            if len(sealed) != len(header):
                raise ValueError(f"{path.name}: its last metadata need another room than its first.")
            file.seek(0)
            file.write(sealed)

    write_whole(path, write)


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Make a file that is whole, on the disk and at its place, or not there. Raises `SourceError` where that fails."""
    scratch = path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}{PART}")
    try:
        # os.open and not tempfile: the file gets the mode that the user's umask asks for, not 0600.
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except OSError as error:
        raise SourceError(f"{path.name}: cannot be written ({error.strerror}). Choose a writable folder.") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        raise SourceError(f"{path.name}: cannot be written ({error.strerror}). Is the disk full?") from error
    finally:
        with contextlib.suppress(OSError):
            scratch.unlink()
    _sync_folder(path.parent)


def data_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's data as a file holds them."""
    if not tensor.numel():
        return memoryview(b"")
    dense = tensor.detach().resolve_conj().resolve_neg().to("cpu").contiguous()
    return dense.view(-1).view(torch.uint8).numpy().data


def _copy(file: BinaryIO, ordered: Mapping[str, torch.Tensor], copied: Copied) -> Iterator[torch.Tensor]:
    """Write the tensors that lie in the copied file, run by run; yield the others, in order, for the caller."""
    start, stop = 0, 0
    for tensor in ordered.values():
        offset = copied.tensors.offset_of(tensor)
        if offset is not None and offset == stop and stop > start:
            stop += tensor.nbytes
            continue
        copy_bytes(copied.file, file, start, stop)
        start, stop = (0, 0) if offset is None else (offset, offset + tensor.nbytes)
        if offset is None:
            yield tensor
    copy_bytes(copied.file, file, start, stop)


def copy_bytes(source: BinaryIO, target: BinaryIO, start: int, stop: int) -> None:
    """Append bytes start to stop of a file to another: by the kernel where it can, else through memory."""
    if stop <= start:
        return
    target.flush()
    into, at = target.fileno(), start
    with contextlib.suppress(OSError, AttributeError):  # not on this system, or not between these file systems
        while at < stop and (done := os.copy_file_range(source.fileno(), into, stop - at, at)):
            at += done
    source.seek(at)
    while at < stop:
        block = source.read(min(_BLOCK, stop - at))
        if not block:
            raise OSError(0, "the source was cut short while it was copied")
        target.write(block)
        at += len(block)


def ordered_tensors(tensors: Mapping[Any, Any], name: str) -> dict[str, torch.Tensor]:
    """Check the tensors and put them into the order of the file."""
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not _encodable(key) or key == "__metadata__":
            raise SourceError(f"{name}: {clip(key)} cannot be a key of a safetensors file. Expected a plain text name.")
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in _NAMES or tensor.layout != torch.strided:
            kind = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise SourceError(f"{name}: {clip(key)} is a {kind}, expected a dense tensor of {', '.join(DTYPES)}.")
        if tensor.is_meta:
            raise SourceError(f"{name}: {clip(key)} is on the meta device and has no data. Load its weights first.")
    return dict(sorted(tensors.items(), key=lambda item: (_RANK[item[1].dtype], item[0].encode())))


def _checked(metadata: Mapping[Any, Any], name: str) -> dict[str, str]:
    """Check that metadata are strings, and sort them."""
    for key, text in metadata.items():
        if not isinstance(key, str) or not isinstance(text, str) or not _encodable(key) or not _encodable(text):
            raise SourceError(
                f"{name}: metadata {clip(key)} is a {type(text).__name__}, expected text. Turn it into a string first."
            )
    return dict(sorted(metadata.items()))


def _encodable(text: str) -> bool:
    """Tell whether `text` has a UTF-8 form (half a surrogate pair has none)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def header_of(ordered: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Build the length and the JSON header, padded so that the data start on a multiple of 8."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key, tensor in ordered.items():
        start, end = end, end + tensor.numel() * tensor.dtype.itemsize
        header[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; some file systems cannot, and the file itself is already safe."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

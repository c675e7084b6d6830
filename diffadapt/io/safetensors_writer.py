"""Writing safetensors: equal tensors and metadata give equal bytes, and a file is either whole or not there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
    """An open safetensors file, and at which byte its data section begins: what is taken from there is copied by the
    system, not by us."""

    file: BinaryIO
    data_start: int


class Run(NamedTuple):
    """Bytes `start:stop` of the copied file's data section: the data of one tensor, or of several that touch."""

    start: int
    stop: int


Placed: TypeAlias = "Callable[[torch.Tensor], int | None]"
"""At which byte of the copied file's data section a tensor's data begin; None where they are not there as they are."""


@dataclass(frozen=True)
class Layout:
    """A file but for its metadata; nothing in it is of one file only, unless a tensor is.

    entries: the header's text behind the metadata, without the braces. data: in the order of the file, runs of the
    copied file and tensors with data of their own.
    """

    entries: bytes
    data: tuple[Run | torch.Tensor, ...]

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """The length and the JSON header, padded so that the data start on a multiple of 8."""
        said = [f'"__metadata__":{_json(metadata)}'.encode()] if metadata else []
        text = b"{" + b",".join([*said, self.entries] if self.entries else said) + b"}"
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text

    def pieces(self) -> Iterator[Run | memoryview]:
        """The data in order; runs in blocks of which one at a time fits into memory."""
        for piece in self.data:
            if isinstance(piece, Run):
                for start in range(piece.start, piece.stop, _BLOCK):
                    yield Run(start, min(start + _BLOCK, piece.stop))
            else:
                yield data_of(piece)


def lay_out(tensors: Mapping[Any, Any], name: str, placed: Placed) -> Layout:
    """The layout of a file of these tensors. Raises `SourceError`, with the file's `name`, for what it cannot hold."""
    ordered = ordered_tensors(tensors, name)
    data: list[Run | torch.Tensor] = []
    for key, tensor in ordered.items():
        start, last = placed(tensor), data[-1] if data else None
        if start is None:
            if tensor.is_meta:
                raise SourceError(f"{name}: {clip(key)} is on the meta device and has no data. Load its weights first.")
            data.append(tensor)
        elif isinstance(last, Run) and last.stop == start:
            data[-1] = Run(last.start, start + tensor.nbytes)
        else:
            data.append(Run(start, start + tensor.nbytes))
    return Layout(_entries(ordered), tuple(data))


def placed_in(tensors: MappedTensors | None) -> Placed:
    """Where the tensors lie that are views of a mapped file; without one, nowhere."""

    if tensors is None:
        return lambda _: None

    def placed(tensor: torch.Tensor) -> int | None:
        offset = tensors.offset_of(tensor)
        return None if offset is None else offset - tensors.data_start

    return placed


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` (any device, any strides) and `metadata` to `path`, replacing a file there in one step.

    The data are laid out as the safetensors library does (wide dtypes first, then by key); metadata keys are sorted,
    which the library does not do, so that equal content gives equal bytes. A mapped source at `path` keeps its data.
    Raises `SourceError` for values a file cannot hold and for a folder that cannot be written.
    """
    path = Path(path)
    write_layout(path, lay_out(tensors, path.name, placed_in(None)), metadata or {})


def write_layout(
    path: Path, layout: Layout, metadata: Mapping[str, str], copied: Copied | None = None, seal: Seal | None = None
) -> None:
    """Write a file that is laid out already; else as `write_safetensors`. copied: the file whose runs it has.

    seal: gives the metadata that take the place of `metadata`, as long as they are, once the data are written.
    """
    header = layout.header(_checked(metadata, path.name))

    def write(file: BinaryIO) -> None:
        file.write(header)
        begun = 0
        for piece in layout.pieces():
            if isinstance(piece, Run):
                source, start, stop = _lying(piece, copied)
                copy_bytes(source, file, start, stop)
            else:
                file.write(piece)
            begun = _begin_to_store(file, begun)
        if seal is not None:
            sealed = layout.header(_checked(seal(), path.name))
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


def read_run(run: Run, copied: Copied | None) -> bytes:
    """The bytes of a run."""
    file, start, stop = _lying(run, copied)
    file.seek(start)
    return file.read(stop - start)


def _lying(run: Run, copied: Copied | None) -> tuple[BinaryIO, int, int]:
    """Where a run lies: the file, and from which of its bytes to which."""
    if copied is None:
        raise ValueError("A run lies in another file, and none is given.")
    return copied.file, copied.data_start + run.start, copied.data_start + run.stop


def _begin_to_store(file: BinaryIO, begun: int) -> int:
    """Have the system bring to the disk what was written from byte `begun` on, while the rest is written; at the end
    little is left to wait for. Gives the byte up to which it does; less than a block is left for later."""
    end = file.tell()
    if end - begun < _BLOCK or not hasattr(os, "posix_fadvise"):
        return begun
    file.flush()
    with contextlib.suppress(OSError):
        # Linux writes out the pages that are to be given up. They stay in memory, as they are in use while it does.
        os.posix_fadvise(file.fileno(), begun, end - begun, os.POSIX_FADV_DONTNEED)
    return end


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


def header_of(ordered: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """The header of a file of these tensors (see `Layout.header`)."""
    return Layout(_entries(ordered), ()).header(metadata)


def _entries(ordered: Mapping[str, torch.Tensor]) -> bytes:
    """What a header says of the tensors, without the braces around it."""
    entries: dict[str, Any] = {}
    end = 0
    for key, tensor in ordered.items():
        start, end = end, end + tensor.nbytes
        entries[key] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    return _json(entries)[1:-1].encode()


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; some file systems cannot, and the file itself is already safe."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

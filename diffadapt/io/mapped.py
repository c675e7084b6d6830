"""Tensors that lie in a file: views of one private memory mapping, made when asked for."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import BinaryIO, NamedTuple

import torch

from diffadapt.errors import SourceError


class TensorInfo(NamedTuple):
    """Where one tensor lies: dtype, shape, and the bytes `start:stop` of its data in the data section."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def map_file(file: BinaryIO, name: str) -> mmap.mmap:
    """Map an open, non-empty file copy-on-write: writing to a view never reaches the file and never faults.

    `name` stands for the file in the `SourceError` where the system cannot map it.
    """
    try:
        return mmap.mmap(file.fileno(), os.fstat(file.fileno()).st_size, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise SourceError(
            f"{name}: cannot be mapped into memory ({error.strerror}). Copy it to a local disk, or free address space."
        ) from error


def view_bytes(buffer: mmap.mmap, offset: int, nbytes: int, dtype: torch.dtype) -> torch.Tensor:
    """Give `nbytes` of `buffer` from `offset` as a flat tensor of `dtype`: a view, or a copy if unaligned."""
    if not nbytes:
        return torch.empty(0, dtype=dtype)
    if offset % dtype.itemsize:
        # A mapping starts on a page, so only the offset decides; misaligned loads are undefined in compiled kernels.
        return torch.frombuffer(bytearray(memoryview(buffer)[offset : offset + nbytes]), dtype=dtype)
    return torch.frombuffer(buffer, dtype=dtype, count=nbytes // dtype.itemsize, offset=offset)


class MappedTensors(Mapping[str, torch.Tensor]):
    """A read-only mapping of keys to tensors in a mapped file; iteration follows the order in the file.

    Each tensor has a storage of its own size, so saving or copying one does not drag the file along. The file must not
    be shortened while views of it live (the operating system ends the process with a bus error then).
    """

    def __init__(self, buffer: mmap.mmap, data_start: int, infos: Mapping[str, TensorInfo]) -> None:
        self._buffer = buffer
        self._data_start = data_start
        self._infos = infos
        self._made: dict[str, torch.Tensor] = {}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Dtype, shape and byte range of each key, without touching the data."""
        return self._infos

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._made.get(key)
        if tensor is None:
            info = self._infos[key]
            flat = view_bytes(self._buffer, self._data_start + info.start, info.stop - info.start, info.dtype)
            tensor = self._made[key] = flat.view(info.shape)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)

    def __contains__(self, key: object) -> bool:
        return key in self._infos

    def __repr__(self) -> str:
        return f"MappedTensors({len(self)} tensors)"

    @property
    def data_start(self) -> int:
        """At which byte of the file the data section begins."""
        return self._data_start

    def offset_of(self, tensor: torch.Tensor) -> int | None:
        """At which byte of the file the data of a tensor begin; None where they are elsewhere, or in another order."""
        if not tensor.nbytes or not tensor.is_contiguous() or tensor.device.type != "cpu":
            return None
        offset = tensor.data_ptr() - self._address
        return offset if 0 <= offset <= len(self._buffer) - tensor.nbytes else None

    @cached_property
    def _address(self) -> int:
        return torch.frombuffer(self._buffer, dtype=torch.uint8, count=1).data_ptr()

    def runs(self, keys: Iterable[str]) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Join keys whose data touch and whose dtype is the same; yield each run's keys and its flat data."""
        infos = self._infos
        ordered = sorted(keys, key=lambda key: infos[key].start)
        run: list[str] = []
        for key in ordered:
            if run and (infos[run[-1]].stop != infos[key].start or infos[run[-1]].dtype != infos[key].dtype):
                yield run, self._flat(run)
                run = []
            run.append(key)
        if run:
            yield run, self._flat(run)

    def _flat(self, run: list[str]) -> torch.Tensor:
        first, last = self._infos[run[0]], self._infos[run[-1]]
        if (self._data_start + first.start) % first.dtype.itemsize:
            # An unaligned run would be copied whole: bound the copy to the one tensor that is looked at.
            return torch.cat([self[key].reshape(-1) for key in run])
        return view_bytes(self._buffer, self._data_start + first.start, last.stop - first.start, first.dtype)

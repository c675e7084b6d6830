"""The hashes by which model sites, web UIs and trainers know a file. All are lower-case hex text."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from diffadapt.errors import SourceError
from diffadapt.io.safetensors import open_binary, read_header

_BLOCK = 1 << 20


class FileHashes(NamedTuple):
    """All hashes of one file.

    autov1: 8 hex of 64 KiB at 1 MiB (`e3b0c442` for a shorter file: the hash of nothing).
    autov2: 10 hex of the whole file's SHA-256 (`sha256`); a metadata edit changes it.
    autov3: 12 hex of the SHA-256 of the tensors' data (`data_sha256`, which is `sshs_model_hash`); None for pickles.
    """

    autov1: str
    sha256: str
    data_sha256: str | None

    @property
    def autov2(self) -> str:
        """The short form of `sha256` that model sites print."""
        return self.sha256[:10]

    @property
    def autov3(self) -> str | None:
        """The short form of `data_sha256` that model sites print."""
        return self.data_sha256[:12] if self.data_sha256 else None


def hash_file(path: str | os.PathLike[str]) -> FileHashes:
    """Compute every hash of a file in one pass; `SourceError` if it cannot be read."""
    path = Path(path)
    start = _data_start(path)
    whole, data = hashlib.sha256(), hashlib.sha256()
    with open_binary(path, path.name) as file:
        position = 0
        while block := file.read(_BLOCK):
            whole.update(block)
            if start is not None:
                data.update(memoryview(block)[max(start - position, 0) :])
            position += len(block)
        legacy = _legacy(file)
    return FileHashes(legacy, whole.hexdigest(), None if start is None else data.hexdigest())


def hash_data(path: str | os.PathLike[str]) -> str:
    """Compute the SHA-256 (64 hex) of a safetensors file's data section: `sshs_model_hash`, and AutoV3 in full."""
    path = Path(path)
    start = read_header(path).data_start
    digest = hashlib.sha256()
    with open_binary(path, path.name) as file:
        file.seek(start)
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Compute a SHA-256 (64 hex) over keys, dtypes, shapes and values, whatever their order, device or file.

    Equal for equal state dicts, however they were stored; unlike `hash_data` it also covers the names.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().to("cpu").contiguous()
        # Zero bytes delimit: without them a key and a dtype could be read in two ways.
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode("utf-8", "surrogatepass"))
        if tensor.numel():
            digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _legacy(file: BinaryIO) -> str:
    """First 8 hex of the SHA-256 of 64 KiB at 1 MiB."""
    file.seek(0x100000)
    return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def _data_start(path: Path) -> int | None:
    """Where the data section starts, or None for a file that is no safetensors file."""
    try:
        return read_header(path).data_start
    except SourceError:
        return None

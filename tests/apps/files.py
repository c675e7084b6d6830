"""Libraries of adapter files for the mixer: good ones, ones for another pipeline, damaged ones, and no adapters."""

from __future__ import annotations

import json
import os
import struct
from functools import lru_cache
from pathlib import Path

from diffadapt import shapes
from tests.attacks.files import code_pickles

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 184608\n"
PAGE = "<!DOCTYPE html><html><head><title>Sign in</title></head><body>No file here.</body></html>"


def adapters(pipeline: str) -> dict[str, Path]:
    """The adapter files of an embedded pipeline, by name; of a PEFT folder its weights."""
    found = {sample.name: sample.path for sample in shapes.adapters(pipeline)}
    return {name: path if path.is_file() else path / "adapter_model.safetensors" for name, path in found.items()}


@lru_cache(maxsize=32)
def header(path: Path) -> tuple[dict[str, str], bytes, int]:
    """The metadata of a safetensors file, the rest of its header as text, and how many bytes of data follow."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        found = json.loads(file.read(length))
    metadata: dict[str, str] = found.pop("__metadata__", {})
    return metadata, json.dumps(found, separators=(",", ":")).encode(), path.stat().st_size - 8 - length


def hollow(source: Path, target: Path, **metadata: str) -> Path:
    """A file with the header of another, further metadata, and nothing but zeros as data, which take no room."""
    known, rest, size = header(source)
    front = json.dumps({"__metadata__": known | metadata}, separators=(",", ":")).encode()
    text = front[:-1] + b"," + rest[1:]
    with target.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    return target


def fill(folder: Path, each: int) -> int:
    """So many variants of every embedded adapter of both pipelines, in folders; returns how many files that are."""
    count = 0
    for pipeline in shapes.PIPELINES:
        for name, source in adapters(pipeline).items():
            if name == "dusk":
                continue  # is a file and a config
            below = folder / pipeline / name
            below.mkdir(parents=True)
            for number in range(each):
                hollow(source, below / f"{name}-{number}.safetensors", ss_output_name=f"{name}{number}")
                count += 1
    return count


TROUBLES = {
    "cut.safetensors": "bytes", "cut-in-header.safetensors": "header", "empty.safetensors": "empty",
    "pointer.safetensors": "LFS", "page.safetensors": "HTML", "code.pt": "", "noise.safetensors": "",
    "gone.safetensors": "cannot be read",
}  # fmt: skip
"""Files that cannot be used, and a word of what is said of each."""


def troubles(folder: Path) -> None:
    """Put the files of `TROUBLES` into a folder. One of them would make the file CANARY if it were unpickled."""
    whole = adapters("unet")["glow"].read_bytes()
    contents = {
        "cut": whole[: len(whole) // 2], "cut-in-header": whole[:5000], "empty": b"", "pointer": POINTER.encode(),
        "page": PAGE.encode(), "noise": bytes(range(256)) * 40,
    }  # fmt: skip
    for name, data in contents.items():
        (folder / f"{name}.safetensors").write_bytes(data)
    (folder / "code.pt").write_bytes(dict(code_pickles(str(folder / "CANARY")))["zip-system"])
    (folder / "gone.safetensors").symlink_to(folder / "nowhere.safetensors")


def odd_name(folder: Path, source: Path) -> Path | None:
    """A copy under a name that is no UTF-8; None where the system has no such names."""
    try:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), b"\xff-glow.safetensors")))
        path.write_bytes(source.read_bytes())
    except OSError:
        return None
    return path

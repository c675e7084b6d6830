"""Which files a conversion reads, and where each result goes: a folder's tree is mirrored."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from diffadapt.converters.sources import file_name, is_remote, shown
from diffadapt.errors import ConvertError
from diffadapt.explain.sources import Found, Kind, find
from diffadapt.io.folder import CONFIG_OF, is_weights

SUFFIX = ".safetensors"
_HUB = "hf://"
PEFT_FILE = "adapter_model"
"""The name that PEFT gives every adapter; the folder tells them apart."""


@dataclass(frozen=True)
class Job:
    """One file. source: a path, an address, a Hub id behind hf://. out: the file that is made, or PEFT's folder."""

    source: str
    out: str

    @property
    def name(self) -> str:
        """The source as reports have it."""
        name: str = shown(self.source)
        return name

    @property
    def file(self) -> Path:
        """The file of weights that stands for the result."""
        out = Path(self.out)
        return out if out.suffix == SUFFIX else out / f"{PEFT_FILE}{SUFFIX}"


def jobs(sources: Sequence[str], out: Path, dialect: str | None) -> tuple[list[Job], list[Found]]:
    """The jobs of a command line, and the sources that there are none for.

    sources: files, folders (with all below), patterns, addresses, Hub ids (see `explain.sources.find`). out: a folder;
    or, for a single file, a file ending in `.safetensors`. Raises ConvertError where two files would get one name, or a
    file would be written over itself.
    """
    found: list[tuple[str, Path]] = []
    missing: list[Found] = []
    for source in sources:
        local = source.removeprefix("file://")
        root = _root(local)
        for one in find([local]):
            if one.kind is Kind.MISSING:
                missing.append(one)
            elif one.kind is Kind.FILE:
                found.append((one.text, _relative(Path(one.text), root, dialect)))
            else:
                text = f"{_HUB}{one.text}" if one.kind is Kind.HUB else one.text
                found.append((text, _relative(_below(text, source), Path(), dialect)))
    if out.suffix == SUFFIX and not out.is_dir():
        if len(found) != 1:
            raise ConvertError(f"{out} is one file, and {len(found)} are to be converted; name a folder with -o.")
        return _distinct([Job(found[0][0], str(out))]), missing
    return _distinct([Job(source, str(out / relative)) for source, relative in found]), missing


def _root(source: str) -> Path:
    """The folder below which the tree is mirrored."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if not glob.has_magic(source) or path.exists():
        return path.parent
    fixed = list(path.parts)
    magic = next(i for i, part in enumerate(fixed) if glob.has_magic(part))
    return Path(*fixed[:magic]) if magic else Path()


def _below(source: str, named: str) -> Path:
    """A remote source's place in the tree: what follows the folder that was named, or else the last of its names that
    tells it from others."""
    folder = "/".join(takewhile(lambda part: not glob.has_magic(part), named.split("/")))
    if source.startswith(f"{folder}/"):
        return Path(source.removeprefix(f"{folder}/"))
    name = Path(file_name(source))
    if not is_weights(name.name):
        return Path(f"{name.name}{SUFFIX}")  # a repository, whose name may have dots
    above = source.rstrip("/").split("/")[-2]
    return Path(f"{above}{name.suffix}") if name.stem in CONFIG_OF else name


def _relative(path: Path, root: Path, dialect: str | None) -> Path:
    """The result's place below the output folder: the source's below the root, with the ending of what is written."""
    relative = Path(os.path.relpath(path, root))
    if path.stem in CONFIG_OF and (parent := path.resolve().parent.name):
        # Named by their folders: the file names of all of them are the same.
        inside = relative.parent if relative.parent.name else Path(parent)
        relative = inside.with_name(inside.name + path.suffix)
    stem = relative.name.removesuffix(path.suffix)
    return relative.with_name(stem if dialect == "peft" else stem + SUFFIX)


def _distinct(found: list[Job]) -> list[Job]:
    taken: dict[str, str] = {}
    unique: list[Job] = []
    for job in found:
        if taken.get(job.out) == job.source:
            continue  # named twice
        if job.out in taken:
            raise ConvertError(
                f"{job.source} and {taken[job.out]} would both be written to {job.out}; convert them to two folders."
            )
        if job.file.exists() and not is_remote(job.source) and os.path.samefile(job.source, job.file):
            raise ConvertError(f"{job.source} would be written over itself; name another folder with -o.")
        taken[job.out] = job.source
        unique.append(job)
    return unique


def shard(found: Sequence[Job], text: str) -> list[Job]:
    """Part i of n of the jobs, "i/n" counted from 1: the same parts on every machine that sees the same files."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConvertError(f"--shard is {text!r}; expected i/n, from 1/n to n/n.")
    ordered = sorted(found, key=lambda job: job.out)
    return ordered[int(number) - 1 :: int(count)]

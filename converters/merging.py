"""Adapters into a base checkpoint on disk: file by file, one layer in memory at a time; what does not change is copied.

A base is a `.safetensors` file (in Diffusers' names, or a single file of the original code, text encoders included), a
folder of one model or of a whole pipeline, in shards or not. Sums are in float32, rounded once, against
the base weight for every adapter, as `pipe.adapters.merge()` does it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from torch import Tensor

import diffadapt
from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.combine.checkpoints import component_files, plain
from diffadapt.converters.original import Piece, encoders, pieces, split
from diffadapt.errors import ConvertError
from diffadapt.families import Family, family_named
from diffadapt.io.mapped import MappedTensors
from diffadapt.io.safetensors import open_binary, read_header, read_safetensors
from diffadapt.io.safetensors_writer import copy_bytes, data_of, header_of, ordered_tensors, write_whole

NOTE = "diffadapt.merged"
"""Metadata of a merged file: which adapters at which weights."""


@dataclass
class Merged:
    """What was merged. changed: parameters; used: the targets whose weights were met; biased: whose biases were;
    wants_bias: whose deltas change one."""

    files: list[Path] = field(default_factory=list)
    changed: int = 0
    used: set[TargetKey] = field(default_factory=set)
    biased: set[TargetKey] = field(default_factory=set)
    wants_bias: set[TargetKey] = field(default_factory=set)


def merge_files(
    base: str | os.PathLike[str], adapters: Sequence[tuple[Adapter, float]], out: str | os.PathLike[str]
) -> Merged:
    """Merge adapters, with their weights, into the checkpoint `base`, and write the result to `out`.

    out: a file for a file, a folder for a folder; what is in a folder besides weights is copied. Raises ConvertError
    where an adapter acts on something that the base does not have, or where `out` is `base` or is there already;
    SourceError for what cannot be read.
    """
    source, target = Path(base).expanduser(), Path(out).expanduser()
    if target.exists():
        raise ConvertError(f"{target}: is there already; name another place for the result.")
    job = _Merge(adapters)
    weights = component_files(source, None)
    single = next((file for component, file in weights if component is None), None)
    inside = encoders(read_header(single).tensors, job.family) if single is not None else set()
    job.check({component for component, _ in weights} | inside)
    try:
        if source.is_dir():
            job.copy_rest(source, target, [file for _, file in weights])
        for component, file in weights:
            job.file(file, component, target / file.relative_to(source) if source.is_dir() else target)
        job.finish()
    except BaseException:  # also Ctrl-C: half a model must not look like one
        shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        raise
    return job.done


class _Merge:
    """A merge under way."""

    def __init__(self, adapters: Sequence[tuple[Adapter, float]]) -> None:
        self.adapters, self.done = adapters, Merged()
        for adapter, _ in adapters:
            if adapter.foreign or adapter.embeddings:
                what = next((f.module for f in adapter.foreign), None) or "textual-inversion embeddings"
                raise ConvertError(f"{adapter.source}: {what} has no place in a checkpoint that is known here.")
        names = {f"{adapter.source}": weight for adapter, weight in adapters}
        self.note = json.dumps({"version": diffadapt.__version__, "adapters": names})
        families = {adapter.family for adapter, _ in adapters}
        self.family: Family | None = family_named(families.pop()) if len(families) == 1 else None

    def check(self, components: Collection[str | None]) -> None:
        """Raise ConvertError before anything is written where a component is missing."""
        denoiser = self.family.slots.get("denoiser") if self.family else None
        there = {denoiser if component is None else component for component in components}
        for adapter, _ in self.adapters:
            if missing := [part for part in adapter.components if part not in there]:
                raise ConvertError(
                    f"{adapter.source}: acts on {', '.join(missing)}, which the base does not hold in names that are "
                    "known here. Merge into a Diffusers folder, or only a part of the adapter."
                )

    def copy_rest(self, source: Path, target: Path, weights: Sequence[Path]) -> None:
        """Copy what a folder holds besides the weights that are merged."""
        taken = set(weights)

        def left_out(folder: str, names: list[str]) -> list[str]:
            return [name for name in names if Path(folder, name) in taken]

        shutil.copytree(source, target, ignore=left_out)

    def file(self, file: Path, component: str | None, out: Path) -> None:
        """Write one file of the base, merged."""
        tensors, metadata = read_safetensors(file)
        ordered = ordered_tensors(tensors, file.name)
        header = header_of(ordered, dict(sorted({**metadata, NOTE: self.note}.items())))
        out.parent.mkdir(parents=True, exist_ok=True)
        with open_binary(file, file.name) as source:
            write_whole(out, lambda target: self._stream(target, header, ordered, tensors, source, component))
        self.done.files.append(out)

    def _stream(
        self, target: BinaryIO, header: bytes, ordered: Mapping[str, Tensor], tensors: MappedTensors,
        source: BinaryIO, component: str | None,
    ) -> None:  # fmt: skip
        target.write(header)
        for name, tensor in ordered.items():
            merged = self.parameter(name, tensor, tensors, component)
            offset = tensors.offset_of(tensor) if merged is None else None
            if offset is not None:
                copy_bytes(source, target, offset, offset + tensor.nbytes)
            else:
                target.write(data_of(tensor if merged is None else merged))

    def parameter(
        self, name: str, tensor: Tensor, all_of: Mapping[str, Tensor], component: str | None
    ) -> Tensor | None:
        """A parameter with what the adapters change of it; None where that is nothing."""
        module, role, its_weight = split(name)
        if role not in ("weight", "bias") or not tensor.is_floating_point():
            return None
        total: Tensor | None = None
        for piece in self.pieces(component, module, tensor.shape[0] if tensor.ndim else 0):
            for adapter, strength in self.adapters:
                delta = adapter.targets.get(piece.target)
                if delta is None or not strength:
                    continue
                weight = all_of.get(its_weight, tensor)
                change = _change(delta, role, _rows(tensor, piece), _rows(weight, piece))
                (self.done.used if role == "weight" else self.done.biased).add(piece.target)
                if role == "weight" and _change(delta, "bias", tensor.new_zeros(len(tensor)), weight) is not None:
                    self.done.wants_bias.add(piece.target)
                if change is None:
                    continue
                total = tensor.float() if total is None else total
                rows = total[piece.start : piece.stop]
                change = change.reshape(rows.shape)
                rows.add_(change.roll(rows.shape[0] // 2, 0) if piece.turned else change, alpha=strength)
        if total is None:
            return None
        self.done.changed += 1
        return total.to(tensor.dtype)

    def pieces(self, component: str | None, module: str, rows: int) -> Iterator[Piece]:
        """The Diffusers modules that a module of the base is, or holds."""
        if component is not None:
            yield Piece(TargetKey(component, plain(component, f"{module}.")[:-1]))
        else:
            yield from pieces(module, rows, self.family)

    def finish(self) -> None:
        """Raise ConvertError where something was not merged."""
        for adapter, weight in self.adapters:
            met = self.done.used - (self.done.wants_bias - self.done.biased)
            lost = [key for key in adapter.targets if key not in met] if weight else []
            if lost:
                raise ConvertError(
                    f"{adapter.source}: {len(lost)} modules are not in the base, or lack the bias that is changed, "
                    f"{lost[0].component} {lost[0].module} the first. It is for another model; nothing was written."
                )


def _rows(tensor: Tensor, piece: Piece) -> Tensor:
    """The rows of a piece, in Diffusers' order."""
    rows = tensor[piece.start : piece.stop] if tensor.ndim else tensor
    return rows.roll(rows.shape[0] // 2, 0) if piece.turned else rows


def _change(delta: Delta, role: str, own: Tensor, weight: Tensor) -> Tensor | None:
    """What a delta changes of a parameter, float32, at full strength; None for nothing."""
    if role == "weight":
        return delta.weight_delta(own).float()
    change = delta.bias_change(own, lambda: weight)
    return None if change is None else change.float()

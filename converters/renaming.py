"""Where only names change, what is written is decided by a file's structure: worked out once, it holds for every file
alike, of which no tensor is looked at and no header parsed.

It is worked out on stand-ins, tensors of the file's types and shapes that have no values: whatever would look at one
fails, and the file is then converted as any other. Scalars (alpha) have their values, which are compared, and so is
what was asked of the metadata on the way.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffadapt.converters.change import MEANING, changed, stripped
from diffadapt.converters.plan import Plan
from diffadapt.converters.result import Made, Told, told
from diffadapt.errors import DiffAdaptError
from diffadapt.explain.recogniser import Noted, read
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.headers import HeaderText, read_text
from diffadapt.io.mapped import TensorInfo
from diffadapt.io.safetensors_writer import Layout, Placed, lay_out
from diffadapt.io.structures import Seen, Structures, Variant
from diffadapt.writing import carried, compose

_STRUCTURES, _VARIANTS = 64, 16


@dataclass(frozen=True)
class Renaming:
    """What files of one structure become.

    told: as the stand-ins' adapter says it. layout: with the source's bytes as runs. said: metadata beside those that
    are carried over. beside: see `Made`.
    """

    told: Told
    layout: Layout
    said: Mapping[str, str]
    beside: Mapping[str, Any] | None

    def made(self, header: HeaderText, metadata: Mapping[str, str], plan: Plan) -> Made:
        """The result for one file."""
        kept = stripped(metadata, plan.keep) if plan.strip else metadata
        said = {**carried(kept), **self.said}
        return Made(self.told, self.layout, 8 + len(header.text), said, metadata, self.beside)


class Renamings:
    """Remembers what files become. One for each process."""

    def __init__(self) -> None:
        self._structures: Structures[Renaming | None] = Structures(_STRUCTURES, _VARIANTS)

    def made(self, source: Path, plan: Plan, folder: bool) -> Made | None:
        """What becomes of a local file. folder: PEFT's.

        None where more than names changes or values decide, and for a file with anything wrong about it, which is said
        by those who read it in full.
        """
        if not only_names(plan) or not os.fsdecode(source).isprintable():
            return None
        try:
            header = read_text(source)
            seen = self._structures.see(header)
        except (DiffAdaptError, OSError):
            return None
        beside = (header.config, plan.key, folder)
        variant = seen.known(beside)
        if variant is None:
            variant = _worked_out(seen, beside, plan, folder)
            self._structures.remember(seen, variant)
        return None if variant.found is None else variant.found.made(header, seen.metadata, plan)


def only_names(plan: Plan) -> bool:
    """Whether a plan leaves every number as it is, and asks for nothing that reads them."""
    return not (plan.dtype or plan.algorithm or plan.resizes or plan.check or plan.verify)


def _worked_out(seen: Seen[Renaming | None], beside: object, plan: Plan, folder: bool) -> Variant[Renaming | None]:
    small, infos = seen.small(), seen.parse().tensors
    stand_ins = {
        key: torch.frombuffer(bytearray(small[key]), dtype=info.dtype).view(info.shape)
        if small.get(key)
        else torch.empty(info.shape, dtype=info.dtype, device="meta")
        for key, info in infos.items()
    }
    noted, header = Noted(seen.metadata), seen.header
    raw = RawCheckpoint(stand_ins, noted, header.config, header.name, header.path)
    try:
        found = _renaming(raw, infos, noted, plan, folder)
    except (DiffAdaptError, NotImplementedError, RuntimeError):
        found = None  # said better with the values at hand, if it is to be said at all
    decided = not (noted.listed or noted.unanswered)
    return Variant(seen.scalars, beside, noted.asked, found if decided else None)


def _renaming(
    raw: RawCheckpoint, infos: Mapping[str, TensorInfo], noted: Noted, plan: Plan, folder: bool
) -> Renaming | None:
    adapter = read(raw)
    if adapter.embeddings or (plan.strict and adapter.unmatched):
        return None
    decisive = {key: text for key in (*MEANING, *noted.asked) if (text := noted.get(key)) is not None}
    bare = replace(adapter, metadata=replace(adapter.metadata, raw=decisive))
    made = compose(changed(bare, plan), plan.to or adapter.dialect, folder=folder)
    layout = lay_out(made.tensors, raw.name, _placed(raw.tensors, infos))
    if any(isinstance(piece, Tensor) and piece.numel() > 1 for piece in layout.data):
        return None
    said = {key: text for key, text in made.metadata.items() if decisive.get(key) != text}
    return Renaming(told(adapter, plan, len(made.tensors), {}), layout, said, made.beside)


def _placed(stand_ins: Mapping[str, Tensor], infos: Mapping[str, TensorInfo]) -> Placed:
    """Where the data lie that a stand-in, or a view of one, stands for."""
    origins = {
        tensor.untyped_storage()._cdata: info for tensor, info in zip(stand_ins.values(), infos.values(), strict=True)
    }

    def placed(tensor: Tensor) -> int | None:
        info = origins.get(tensor.untyped_storage()._cdata)
        if info is None or not tensor.is_contiguous() or tensor.dtype != info.dtype:
            return None
        return info.start + int(tensor.storage_offset()) * info.dtype.itemsize

    return placed

"""Where only names change, what is written is decided by a file's structure: worked out once, it holds for every file
alike, and no tensor is decoded.

It is worked out on stand-ins, tensors of the file's types and shapes that have no values: whatever would look at one
fails, and the file is then converted as any other. Scalars (alpha) have their values, which are compared, and so is
what was asked of the metadata on the way.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.converters.change import MEANING, changed, stripped
from diffadapt.converters.plan import Plan
from diffadapt.errors import DiffAdaptError
from diffadapt.explain.recogniser import Noted, read
from diffadapt.io.checkpoint import RawCheckpoint
from diffadapt.io.headers import Small, read_small, small_tensors
from diffadapt.io.mapped import MappedTensors
from diffadapt.writing import Composed, carried, compose

_STRUCTURES, _VARIANTS = 64, 8

Signature: TypeAlias = "tuple[object, ...]"
"""What is compared at once: keys, types and shapes, the plan, and whether a folder is written."""


class Place(NamedTuple):
    """Where a tensor of the result lies: the source's key, the number of its first element there, its shape."""

    key: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Renaming:
    """How files of one structure are written.

    places: what is the source's, by new key. scalars: what is not. said: metadata beside those that are carried over.
    adapter: as the stand-ins make it, for reports.
    """

    adapter: Adapter
    places: Mapping[str, Place]
    scalars: Mapping[str, Tensor]
    said: Mapping[str, str]
    beside: Mapping[str, Any] | None

    def composed(self, raw: RawCheckpoint, plan: Plan) -> Composed:
        """The result for one file."""
        tensors = {key: _at(raw.tensors[place.key], place) for key, place in self.places.items()}
        kept = stripped(raw.metadata, plan.keep) if plan.strip else raw.metadata
        return Composed(tensors | dict(self.scalars), carried(kept) | dict(self.said), self.beside)


class _Variant(NamedTuple):
    """What was found for these scalars, this config and these answers of the metadata."""

    scalars: bytes
    config: Mapping[str, Any] | None
    asked: Mapping[str, str | None]
    found: Renaming | None


@dataclass
class _Structure:
    small: Small
    variants: list[_Variant] = field(default_factory=list)


class Renamings:
    """Remembers structures. One for each process."""

    def __init__(self) -> None:
        self._known: OrderedDict[Signature, _Structure] = OrderedDict()

    def find(self, raw: RawCheckpoint, plan: Plan, folder: bool) -> Renaming | None:
        """How to write this file, or None where more than names changes or values decide. folder: PEFT's."""
        mapped = raw.tensors
        if not isinstance(mapped, MappedTensors) or raw.path is None or not only_names(plan):
            return None
        infos = mapped.infos
        signature = (plan.key, folder, *((key, info.dtype, info.shape) for key, info in infos.items()))
        known = self._known.get(signature)
        if known is None:
            known = self._known[signature] = _Structure(small_tensors(infos))
            if len(self._known) > _STRUCTURES:
                self._known.popitem(last=False)
        # By themselves, and not through the mapping: each would bring its page, and those around it, into memory.
        scalars = read_small(raw.path, mapped.data_start, known.small)
        for variant in known.variants:
            alike = variant.scalars == scalars and variant.config == raw.config
            if alike and all(raw.metadata.get(key) == value for key, value in variant.asked.items()):
                return variant.found
        variant = _worked_out(raw, plan, folder, known.small.by_key(scalars), scalars)
        known.variants[:0] = [variant]
        del known.variants[_VARIANTS:]
        return variant.found


def only_names(plan: Plan) -> bool:
    """Whether a plan leaves every number as it is, and asks for nothing that reads them."""
    return not (plan.dtype or plan.algorithm or plan.resizes or plan.check or plan.verify)


def _worked_out(raw: RawCheckpoint, plan: Plan, folder: bool, small: Mapping[str, bytes], scalars: bytes) -> _Variant:
    assert isinstance(raw.tensors, MappedTensors)
    stand_ins = {
        key: torch.frombuffer(bytearray(small[key]), dtype=info.dtype).view(info.shape)
        if small.get(key)
        else torch.empty(info.shape, dtype=info.dtype, device="meta")
        for key, info in raw.tensors.infos.items()
    }
    noted = Noted(raw.metadata)
    try:
        found = _renaming(replace(raw, tensors=stand_ins, metadata=noted), noted, plan, folder)
    except (DiffAdaptError, NotImplementedError, RuntimeError):
        found = None  # said better with the values at hand, if it is to be said at all
    decided = not (noted.listed or noted.unanswered)
    return _Variant(scalars, raw.config, noted.asked, found if decided else None)


def _renaming(raw: RawCheckpoint, noted: Noted, plan: Plan, folder: bool) -> Renaming | None:
    adapter = read(raw)
    if adapter.embeddings or (plan.strict and adapter.unmatched):
        return None
    decisive = {key: text for key in (*MEANING, *noted.asked) if (text := noted.get(key)) is not None}
    bare = replace(adapter, metadata=replace(adapter.metadata, raw=decisive))
    made = compose(changed(bare, plan), plan.to or adapter.dialect, folder=folder)
    origins = {tensor.untyped_storage()._cdata: key for key, tensor in raw.tensors.items()}
    places: dict[str, Place] = {}
    scalars: dict[str, Tensor] = {}
    for key, tensor in made.tensors.items():
        origin = origins.get(tensor.untyped_storage()._cdata)
        if origin is not None and tensor.is_contiguous() and tensor.dtype == raw.tensors[origin].dtype:
            places[key] = Place(origin, int(tensor.storage_offset()), tuple(tensor.shape))
        elif not tensor.is_meta and tensor.numel() <= 1:
            scalars[key] = tensor
        else:
            return None
    said = {key: text for key, text in made.metadata.items() if decisive.get(key) != text}
    return Renaming(adapter, places, scalars, said, made.beside)


def _at(tensor: Tensor, place: Place) -> Tensor:
    if tuple(tensor.shape) == place.shape:
        return tensor
    count = torch.Size(place.shape).numel()
    return tensor.view(-1)[place.start : place.start + count].view(place.shape)

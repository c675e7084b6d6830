"""The live side of a stack: the slots of all modules, and what is in force in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.layer import Layer
from diffadapt.inject.fused import FusedProjections
from diffadapt.inject.locate import Component
from diffadapt.inject.merging import BaseWeight, MergedWeights
from diffadapt.inject.placement import Hidden, Loaded, Placement
from diffadapt.inject.progress import DENOISERS, FollowTimestep
from diffadapt.inject.schedule import START, Moment, Number
from diffadapt.inject.slot import Slot


class Mix(Protocol):
    """What gives the samples of a batch strengths of their own: adapters per prompt, or gates that learn."""

    shares_tables: bool
    """Whether adapters act on parameters outside of layers meanwhile, which all samples share."""

    def begin(self, owner: Any, parts: Mapping[str, Component], watches: dict[str, Any]) -> None: ...

    def end(self) -> None: ...

    def put(self, loaded: Iterable[Loaded], hidden: Hidden, slots: Mapping[TargetKey, Slot], scale: float) -> None: ...

    def write(self, slots: Mapping[TargetKey, Slot]) -> None: ...


class LiveSlots:
    """Every module that has live deltas. Strengths reach the modules here, and nowhere else."""

    def __init__(self, owner: Any, merged: MergedWeights) -> None:
        self._owner, self._merged = owner, merged
        self.slots: dict[TargetKey, Slot] = {}
        self._fused = FusedProjections()
        self.mix: Mix | None = None
        self._layout: ScaleLayout | None = None
        self._scale = 1.0
        self._progress = 1.0
        self._moment = START
        self._followers: list[RemovableHandle] = []

    # -- structure ---------------------------------------------------------------------------------------------

    def add(self, loaded: Loaded) -> None:
        """Hook the modules of an adapter; its strengths are 0 until `refresh`."""
        for placement in loaded.hooked:
            slot = self.slots.get(placement.key)
            if slot is None:
                base = BaseWeight(self._merged, placement.key, placement.module)
                slot = self.slots[placement.key] = Slot(placement.module, placement.layer, base)
                slot.progress = self._progress
            slot.entries.append(placement.entry)
            slot.invalidate()
            slot.attach()

    def drop(self, loaded: Loaded) -> None:
        """Take an adapter off its modules; a module without any has no hooks left."""
        self._layout = None
        for placement in loaded.hooked:
            slot = self.slots[placement.key]
            slot.entries.remove(placement.entry)
            slot.invalidate()
            if not slot.entries:
                slot.detach()
                del self.slots[placement.key]

    def relayer(self, keys: Iterable[TargetKey]) -> None:
        """Take up the new shapes of modules that were widened or narrowed."""
        for slot in (self.slots[key] for key in keys if key in self.slots):
            slot.layer = Layer.of(slot.module) or slot.layer
            slot.invalidate()

    def follow(self, parts: Mapping[str, Component], loaded: Iterable[Loaded]) -> None:
        """Watch what the adapters on the stack depend on: fused projections, and the timestep where one needs it."""
        self._fused.watch(parts, self.slots)
        if not any(p.delta.live_only for adapter in loaded for p in adapter.placements):
            for handle in self._followers:
                handle.remove()
            self._followers = []
        elif not self._followers:
            hook = FollowTimestep(self._owner, self.set_progress, self._set_rows)
            models = [parts[name].model for name in DENOISERS if name in parts]
            self._followers = [model.register_forward_pre_hook(hook, with_kwargs=True) for model in models]

    # -- what is in force --------------------------------------------------------------------------------------

    def put(self, placement: Placement, number: Number) -> None:
        """Give a placement a strength; `refresh` puts it in force."""
        if placement.put(number, self._moment):
            self.invalidate(placement.key)

    def arrive(self, moment: Moment, loaded: Iterable[Loaded]) -> bool:
        """Give the placements with schedules the strength they have at a moment; whether any of them changed."""
        self._moment, changed = moment, False
        for placement in (p for adapter in loaded for p in adapter.placements if p.schedule is not None):
            before = placement.value
            self.put(placement, placement.number)
            changed |= placement.value != before
        return changed

    def invalidate(self, key: TargetKey) -> None:
        """A delta at a module is another one now, or its tensors are elsewhere."""
        if key in self.slots:
            self.slots[key].invalidate()

    def refresh(self, loaded: Iterable[Loaded], hidden: Hidden) -> None:
        """Put the placements' strengths in force. hidden: whether an adapter is out of force at a module, or merged."""
        for adapter in loaded:
            for placement in adapter.placements:
                out = hidden(adapter.name, placement.key)
                placement.entry.multiplier = 0.0 if out else placement.multiplier * self._scale
        for key, slot in self.slots.items():
            slot.rest_on(merged=key in self._merged)
        if self.mix is not None:
            self.mix.put(loaded, hidden, self.slots, self._scale)
        self.write_scales()

    def write_scales(self) -> None:
        """Write the scales of all packs that are built, as one copy per device."""
        if self.mix is not None:
            self.mix.write(self.slots)
        slots = [slot for slot in self.slots.values() if slot.pack is not None]
        if not slots:
            self._layout = None  # packs that are gone must not be kept alive by it
            return
        if self._layout is None or not self._layout.describes(slots):
            self._layout = ScaleLayout(slots)
        self._layout.write()

    @contextmanager
    def scaled(self, factor: float, refresh: Callable[[], None]) -> Iterator[None]:
        """For a while, multiply the strength of all that is live."""
        before, self._scale = self._scale, self._scale * float(factor)
        try:
            refresh()
            yield
        finally:
            self._scale = before
            refresh()

    @property
    def progress(self) -> float:
        return self._progress

    @property
    def scale(self) -> float:
        """What multiplies the strength of all that is live."""
        return self._scale

    def set_progress(self, value: float) -> None:
        """Tell how far denoising has come, to the deltas that follow it."""
        if value != self._progress:
            self._progress = value
            for slot in self.slots.values():
                slot.progress = value
            self.write_scales()

    def _set_rows(self, rows: Tensor | None) -> None:
        """Tell what is trained how far every sample of the next batch has come."""
        for slot in self.slots.values():
            if slot.learning is not None:
                slot.learning.rows = rows

    def resync_fused(self) -> None:
        """After weights have changed: fused projections hold copies of them."""
        self._fused.resync()


class ScaleLayout:
    """How the scales of many packs follow from the strengths of their entries, worked out once for all of them."""

    def __init__(self, slots: list[Slot]) -> None:
        self.slots = slots
        self.packs = [slot.pack for slot in slots if slot.pack is not None]
        self.sizes = [len(pack.owners) for pack in self.packs]
        self.devices = list({pack.scales.device for pack in self.packs})
        first = 0
        owners: list[int] = []
        factors: list[float] = []
        for slot, pack in zip(slots, self.packs, strict=True):
            owners += [first + owner for owner in pack.owners]
            factors += pack.factors
            first += len(slot.entries)
        self.owners, self.factors = torch.tensor(owners), torch.tensor(factors, dtype=torch.float64)
        self.masked = [slot for slot, pack in zip(slots, self.packs, strict=True) if pack.masks]

    def describes(self, slots: list[Slot]) -> bool:
        """Whether these slots have the packs of this layout still."""
        return len(slots) == len(self.packs) and all(s.pack is p for s, p in zip(slots, self.packs, strict=True))

    @torch.no_grad()
    def write(self) -> None:
        """Write the strengths in force into the packs."""
        strengths = torch.tensor([e.multiplier for slot in self.slots for e in slot.entries], dtype=torch.float64)
        values = (strengths[self.owners] * self.factors).float()
        if len(self.devices) == 1:  # one transfer, and not one per pack
            values = values.to(self.devices[0])
        torch._foreach_copy_([pack.scales for pack in self.packs], list(torch.split(values, self.sizes)))
        for slot in self.masked:
            if slot.pack is not None:
                slot.pack.scales.copy_(torch.tensor(slot.scales(slot.pack), dtype=torch.float32))

"""Gates in force: what a stack runs while a table of strengths (`gates`) learns, one strength for every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffadapt.adapter import TargetKey
from diffadapt.errors import StackError
from diffadapt.inject.entry import Entry
from diffadapt.inject.following import moments_of
from diffadapt.inject.locate import Component
from diffadapt.inject.mixed_rows import BatchLayout, RowsSlot
from diffadapt.inject.pack import Pack, Part
from diffadapt.inject.placement import LINEAR, Hidden, Loaded, Placement
from diffadapt.inject.slot import Slot

if TYPE_CHECKING:
    from diffadapt.algorithms.forms import Rotate
    from diffadapt.inject.gates import Gates

Block = tuple[str, str]
"""(component, the block's name in the grammar of strengths)."""


def block_of(key: TargetKey) -> Block:
    """The block of a module: its first path segment, with the number after it."""
    first, *rest = key.module.split(".")
    return key.component, f"{first}.{rest[0]}" if rest and rest[0].isdecimal() else first


class GatedSlot(RowsSlot):
    """A slot's adapters, each with a strength for every sample that gradients flow to."""

    def _lone_rotation(self, v: Tensor, parts: tuple[Part, ...], pack: Pack) -> tuple[Rotate, float] | None:
        return None


class GatedRows:
    """The gates at one slot. strengths: (samples, entries), anew at every call of the model."""

    def __init__(self, slot: Slot, layout: BatchLayout, strengths: Callable[[], Tensor]) -> None:
        self.slot, self.layout, self.strengths = slot, layout, strengths
        self.inner = GatedSlot(slot.module, slot.layer, slot.base_weight)

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have what a call needs on a device, in a dtype."""
        pack = self.inner.pack = self.slot.ensure(device, dtype)
        self.inner.entries, self.inner.layer, self.inner.layout = self.slot.entries, self.slot.layer, self.layout
        factors = torch.tensor(pack.factors, dtype=torch.float32)
        for start, stop, mask in pack.masks:
            factors[start:stop] *= mask(self.slot.progress)
        self.inner.weights = self.strengths().to(device)[:, pack.owners] * factors.to(device)

    def write(self) -> None:
        """Nothing is kept between two calls."""

    def fold(self, x: Tensor) -> Tensor | None:
        """What the module is to see in place of x, or None for x itself."""
        pack = self.slot.ensure(x.device, x.dtype)
        if not pack.folds:
            return None
        self.prepare(x.device, x.dtype)
        return self.inner.fold(self.layout.whole(x), pack)

    def effect(self, x: Tensor, output: Tensor, forward: Callable[[Tensor], Tensor], folded: bool) -> Tensor:
        """`Slot.effect` with the gates' strengths."""
        if not folded:  # else `fold` has just prepared it
            self.prepare(x.device, x.dtype if x.is_floating_point() else output.dtype)
        return self.inner.plain_effect(self.layout.whole(x), self.layout.whole(output), forward, folded)


class GateMix:
    """What puts gates in force on a stack, for as long as they learn."""

    shares_tables = True

    def __init__(self, gates: Gates) -> None:
        self.gates = gates
        self.now: dict[str, Tensor] = {}
        self.layouts: dict[str, BatchLayout] = {}
        self._handles: list[RemovableHandle] = []
        self._owner: Any = None

    def check(self, loaded: Iterable[Loaded]) -> None:
        """Raise StackError for adapters that gates cannot stand before."""
        for adapter in loaded:
            if adapter.parameters:
                raise StackError(f"Adapter {adapter.name!r} is being trained; train the gates when it has been.")
            for placement in adapter.placements if adapter.name in self.gates.adapters else ():
                where = ".".join(placement.key)
                if not placement.called:
                    raise StackError(f"Adapter {adapter.name!r} changes {where}, outside of layers: it has no gate.")
                if placement.rule != LINEAR:
                    raise StackError(f"Adapter {adapter.name!r} has the rule {placement.rule!r}, and gates are linear.")

    def begin(self, owner: Any, parts: Mapping[str, Component], watches: dict[str, Any]) -> None:
        """Watch the models' timesteps."""
        self._owner = owner
        for name in {component for component, _ in self.gates.blocks} & set(parts):
            self.layouts[name] = BatchLayout(name, 1)
            before = self._before(name)
            self._handles.append(parts[name].model.register_forward_pre_hook(before, with_kwargs=True))

    def end(self) -> None:
        """Leave the models as `begin` found them."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.now = [], {}

    def _before(self, name: str) -> Callable[..., None]:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            progress = [moment.progress for moment in moments_of(self._owner, name, args, kwargs)]
            self.now[name] = self.gates.at(torch.tensor(progress))
            layout = self.layouts[name]
            layout.prompts = len(progress)
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.ndim >= 2]
            layout.batch = tensors[0].shape[0] if tensors else None

        return before

    def put(self, loaded: Iterable[Loaded], hidden: Hidden, slots: Mapping[TargetKey, Slot], scale: float) -> None:
        """Put the gates before the slots. The arguments are those of `LiveSlots.refresh`."""
        held: dict[TargetKey, dict[Entry, tuple[int, int] | float]] = {key: {} for key in slots}
        for adapter in loaded:
            for placement in (p for p in adapter.placements if p.called):
                held[placement.key][placement.entry] = self._gate(adapter, placement, hidden, scale)
        for key, slot in slots.items():
            gated = any(isinstance(gate, tuple) for gate in held[key].values())
            strengths = self._strengths(key, slot, held[key], scale)
            slot.rows = GatedRows(slot, self.layouts[key.component], strengths) if gated else None

    def _gate(self, adapter: Loaded, placement: Placement, hidden: Hidden, scale: float) -> tuple[int, int] | float:
        """The place in the table, or a number where there is no gate."""
        block = block_of(placement.key)
        if hidden(adapter.name, placement.key) or adapter.name not in self.gates.adapters:
            return placement.entry.multiplier
        if block not in self.gates.blocks or placement.key.component not in self.layouts:
            return placement.entry.multiplier
        placement.entry.multiplier = scale or 1.0  # so that the slot is not taken for one with nothing to do
        return self.gates.adapters.index(adapter.name), self.gates.blocks.index(block)

    def _strengths(
        self, key: TargetKey, slot: Slot, held: Mapping[Entry, tuple[int, int] | float], scale: float
    ) -> Callable[[], Tensor]:
        def strengths() -> Tensor:
            now = self.now[key.component]
            columns = []
            for entry in slot.entries:
                gate = held.get(entry, 0.0)
                if isinstance(gate, tuple):
                    columns.append(now[:, gate[0], gate[1]] * scale)
                else:
                    columns.append(now.new_full((len(now),), gate))
            return torch.stack(columns, 1)

        return strengths

    def write(self, slots: Mapping[TargetKey, Slot]) -> None:
        """Strengths are worked out at every call."""

"""A slot: everything live on one module, run from a forward pre-hook and a forward hook.

Hooks leave the module what it is: its class, parameters, buffers and state dict are untouched, and whatever else hooks
it (offloading, layerwise casting, PEFT) keeps working. Adapter tensors follow the activations: they live on the device
and in the dtype the module computes in, and are moved once, not per call.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffadapt.algorithms.forms import BiasChange, Branch, Dense, Form, LowRank, Rotate, TwoSided
from diffadapt.algorithms.layer import Layer
from diffadapt.inject.entry import Entry
from diffadapt.inject.learning import Learning
from diffadapt.inject.locate import weight_of
from diffadapt.inject.pack import Pack, Part, build_pack, channel_forms, low_rank_change
from diffadapt.inject.rows import Rows

_SLOTS: WeakValueDictionary[int, Slot] = WeakValueDictionary()
_numbers = itertools.count()


def _ready(number: int, device: torch.device, dtype: torch.dtype) -> bool:
    """Build a slot's pack while a compiler traces it: the trace then reads a finished pack, and never builds one."""
    slot = _SLOTS[number]
    slot.traced = True
    slot.ensure(device, dtype)
    if slot.rows is not None:
        slot.rows.prepare(device, dtype)
    return True


# What torch.compiler.assume_constant_result sets; calling that here would import the compiler, for seconds.
_ready._dynamo_marked_constant = True  # type: ignore[attr-defined]


class Slot:
    """All live deltas of one module."""

    def __init__(self, module: nn.Module, layer: Layer, base_weight: Callable[[], Tensor]) -> None:
        """base_weight: gives the module's weight without any merged adapter, wherever it is kept now."""
        self.number = next(_numbers)
        self.module, self.layer, self.base_weight = module, layer, base_weight
        self.entries: list[Entry] = []
        self.pack: Pack | None = None
        self.on_merged, self.traced = False, False
        self.progress = 1.0
        self.rows: Rows | None = None
        self.learning: Learning | None = None
        self._stamps: list[int] = []
        self._plain: Tensor | None = None
        self._plains: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        _SLOTS[self.number] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Slot:
        copy = Slot.__new__(type(self))
        memo[id(self)] = copy
        for name, value in self.__dict__.items():
            copy.__dict__[name] = {} if name == "_plains" else deepcopy(value, memo)
        copy.number = next(_numbers)
        _SLOTS[copy.number] = copy
        return copy

    # -- structure ---------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """Hook the module, once."""
        if not self._handles:
            self._handles = [
                self.module.register_forward_pre_hook(self.before),
                self.module.register_forward_hook(self.after),
            ]

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.pack = None

    def invalidate(self) -> None:
        """Forget the pack: it is built again when next needed."""
        self.pack = None
        if any(entry.trainable for entry in self.entries):
            self.learning = self.learning or Learning(self)
            self.learning.forget()
        else:
            self.learning = None

    def rest_on(self, *, merged: bool) -> None:
        """Whether the module's weight holds merged adapters beside the ones that are live here."""
        on_merged = merged and not self.idle
        if on_merged != self.on_merged:
            self.on_merged = on_merged
            self.invalidate()

    @property
    def idle(self) -> bool:
        return all(entry.multiplier == 0.0 for entry in self.entries)

    def base_bias(self) -> Tensor | None:
        return weight_of(self.module, "bias") if isinstance(getattr(self.module, "bias", None), Tensor) else None

    def forms_of(self, entry: Entry, *, training: bool = False) -> tuple[Form, ...]:
        """An adapter's forms at this module. training: those that gradients flow through."""
        delta = entry.now()
        make = delta.training_forms if training else delta.forms
        forms = make(self.layer, self.base_weight, self.base_bias)
        if not self.on_merged or all(isinstance(f, (LowRank, Branch, BiasChange)) for f in forms):
            return forms
        # The module's own product holds other adapters, merged: a map of it would act on them too.
        change = delta.bias_change(self.base_bias(), self.base_weight)
        dense = Dense(delta.weight_delta(self.base_weight()))
        return (dense,) if change is None else (dense, BiasChange(change))

    def ensure(self, device: torch.device, dtype: torch.dtype) -> Pack:
        """The pack for a device and dtype, built or moved where it is not there yet."""
        stamps = [entry.stamp() for entry in self.entries] if self.learning is not None else []
        if self.pack is not None and self.pack.fits(device, dtype) and stamps == self._stamps:
            return self.pack
        self._stamps = stamps
        # Not inference tensors: a later training forward must be able to save them for backward.
        with torch.inference_mode(False), torch.no_grad():
            pack = self._build(device, dtype)
        self.pack = pack
        return pack

    def _build(self, device: torch.device, dtype: torch.dtype) -> Pack:
        pack = build_pack([self.forms_of(e) for e in self.entries], self.layer, self.base_bias(), device, dtype)
        pack.scales.copy_(torch.tensor(self.scales(pack), dtype=torch.float32))
        return pack

    def scales(self, pack: Pack) -> list[float]:
        """What the pack's vector of scales is to hold now."""
        values = [self.entries[o].multiplier * f for o, f in zip(pack.owners, pack.factors, strict=True)]
        for start, stop, mask in pack.masks:
            values[start:stop] = [v * m for v, m in zip(values[start:stop], mask(self.progress).tolist(), strict=True)]
        return values

    # -- the hooks ---------------------------------------------------------------------------------------------

    def current(self, device: torch.device, dtype: torch.dtype) -> Pack:
        """The pack to run now."""
        if torch.compiler.is_compiling():
            _ready(self.number, device, dtype)
            assert self.pack is not None  # _ready has just built it
            return self.pack
        if self.learning is not None and self.learning.active:
            return self._build(device, dtype)  # gradients flow through the forms, so they are made anew
        return self.ensure(device, dtype)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Input forms: the module sees x + sum m * change(x)."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self._plains:
            self._plains.pop(threading.get_ident(), None)  # left behind by a forward that raised
        if (not compiling and self.idle) or not args or not args[0].is_floating_point():
            return None
        x = args[0]
        if self.learning is not None and self.learning.active:
            seen = self.learning.before(x)
            return None if seen is None else (seen, *args[1:])
        pack = self.current(x.device, x.dtype)
        seen = self.rows.fold(x) if self.rows is not None else self.fold(x, pack) if pack.folds else None
        if seen is None:
            return None
        if compiling:
            self._plain = x
        else:
            self._plains[threading.get_ident()] = x
        return (seen, *args[1:])

    def fold(self, x: Tensor, pack: Pack) -> Tensor:
        """What the module is to see in place of x."""
        alone = self._lone_rotation(x, pack.inputs, pack)
        if alone is not None:
            return alone[0].added(x, alone[1], torch.empty_like(x))
        return self._add_changes(x, x, pack.inputs, pack)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        """Everything else, added to the module's output."""
        compiling = torch.compiler.is_compiling()
        if not compiling and self.idle:
            return None
        x, folded = args[0], False
        if self.learning is not None and self.learning.active:
            return self.learning.after(x, output, module.forward)
        if compiling:
            plain, self._plain = self._plain, None
        else:
            plain = self._plains.pop(threading.get_ident(), None)
        if plain is not None:
            x, folded = plain, True
        return self.effect(x, output, module.forward, folded)

    def effect(self, x: Tensor, output: Tensor, forward: Callable[[Tensor], Tensor], folded: bool = False) -> Tensor:
        """The output with all deltas. `folded`: the input forms already acted on what the module saw."""
        if x.device != output.device:  # an offload hook moved the input inside the module's own forward
            x = x.to(output.device)
        if self.rows is not None:
            return self.rows.effect(x, output, forward, folded)
        return self.plain_effect(x, output, forward, folded)

    def plain_effect(self, x: Tensor, output: Tensor, forward: Callable[[Tensor], Tensor], folded: bool) -> Tensor:
        """`effect` where all samples have the same strengths."""
        dtype = x.dtype if x.is_floating_point() else output.dtype
        pack, layer = self.current(x.device, dtype), self.layer
        y = output
        if pack.inputs and not folded:
            moved = self._add_changes(torch.zeros_like(x), x, pack.inputs, pack)
            y = y + self._product(forward, moved, pack)
        alone = self._lone_rotation(output, pack.outputs, pack) if y is output and not pack.two_sided else None
        if alone is not None:
            into = output if output._base is None else torch.empty_like(output)
            y = alone[0].added(output, alone[1], into, pack.base_bias)
        elif pack.outputs or pack.two_sided:
            plain = output if pack.base_bias is None else output - self.layer.channels(pack.base_bias, output)
            y = self._add_changes(y, plain, pack.outputs, pack)
            for part in pack.two_sided:
                if (weight := self._weight(part, pack, y)) is not None:
                    y = _plus(y, self._two_sided(part, forward, x, plain, pack), weight)
        for part in pack.branches:
            if (weight := self._weight(part, pack, y)) is not None and isinstance(part.form, Branch):
                y = _plus(y, part.form.change(x, layer), weight)
        if pack.rank:
            y = self._low_rank(x, y, pack)
        return y if pack.biases is None else self._biased(y, pack.biases, pack)

    def _low_rank(self, x: Tensor, y: Tensor, pack: Pack) -> Tensor:
        return low_rank_change(pack, self.layer, x, y, self._span(pack))

    def _biased(self, y: Tensor, biases: Tensor, pack: Pack) -> Tensor:
        weights = pack.scales[pack.bias_start : pack.bias_start + biases.shape[0]]
        return y + self.layer.channels((weights @ biases).to(y.dtype), y)

    def _weight(self, part: Part, pack: Pack, like: Tensor) -> float | Tensor | None:
        """A part's multiplier: a number, or an element of the scales while tracing; None where it does nothing.

        like: an activation of the batch, which tells what a multiplier for each sample has to be broadcast to.
        """
        if torch.compiler.is_compiling():
            return pack.scales[part.index]
        return self.entries[part.entry].multiplier or None

    def _span(self, pack: Pack) -> tuple[int, int] | None:
        """The smallest run of rank rows that holds every active adapter; None for all (always, while tracing)."""
        if torch.compiler.is_compiling():
            return None
        spans = [s for s, e in zip(pack.spans, self.entries, strict=True) if e.multiplier and s[1] > s[0]]
        return (spans[0][0], spans[-1][1]) if spans else (0, 0)

    def _lone_rotation(self, v: Tensor, parts: tuple[Part, ...], pack: Pack) -> tuple[Rotate, float] | None:
        """The rotation and its multiplier, where it is all there is to do on a processor's activations; else None."""
        eager = not torch.compiler.is_compiling() and not torch.is_grad_enabled()
        if not parts or not eager or v.device.type != "cpu" or v.dtype != pack.dtype or self.layer.kind != "linear":
            return None
        active = [(form, weight) for form, part in channel_forms(parts) if (weight := self._weight(part, pack, v))]
        if len(active) != 1 or not isinstance(active[0][0], Rotate):
            return None
        return active[0][0], float(active[0][1])

    def _add_changes(self, to: Tensor, v: Tensor, parts: tuple[Part, ...], pack: Pack) -> Tensor:
        for form, part in channel_forms(parts):
            if (weight := self._weight(part, pack, v)) is not None:
                to = _plus(to, form.change(v, self.layer), weight)
        return to

    def _product(self, forward: Callable[[Tensor], Tensor], v: Tensor, pack: Pack) -> Tensor:
        """W v, by the module's own forward (which may load an offloaded weight) less its bias."""
        product = forward(v)
        return product if pack.base_bias is None else product - self.layer.channels(pack.base_bias, product)

    def _two_sided(
        self, part: Part, forward: Callable[[Tensor], Tensor], x: Tensor, plain: Tensor, pack: Pack
    ) -> Tensor:
        assert isinstance(part.form, TwoSided)
        turned = self._product(forward, x + part.form.inputs.change(x, self.layer), pack)
        return turned + part.form.outputs.change(turned, self.layer) - plain


def _plus(y: Tensor, change: Tensor, weight: float | Tensor) -> Tensor:
    """y + weight * change, in the dtype of y: one pass, except where a traced weight is a tensor."""
    if isinstance(weight, Tensor):
        return y + (change * weight).to(y.dtype)
    return torch.add(y, change.to(y.dtype), alpha=weight)

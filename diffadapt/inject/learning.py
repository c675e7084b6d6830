"""What a slot runs while an adapter of it is trained: forms made anew in every forward, so that gradients reach them.

Nothing dense is made where an algorithm has structure, and the module's own product is used as it is: rotated inputs
are what the module sees, and cost no product more. Dropouts act here, on the adapter's own change alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from diffadapt.algorithms.forms import BiasChange, Branch, Form, InputChange, LowRank, OutputChange, Turns, TwoSided
from diffadapt.algorithms.layer import Layer
from diffadapt.inject.learner import Dropouts
from diffadapt.inject.pack import down_of

if TYPE_CHECKING:
    from diffadapt.inject.entry import Entry
    from diffadapt.inject.slot import Slot

_NONE = Dropouts()


@dataclass(frozen=True)
class Active:
    """An adapter that acts in this forward, with its strength, its forms and what is left out of them."""

    strength: float
    forms: tuple[Form, ...]
    dropouts: Dropouts


_Held: TypeAlias = "tuple[list[Active], Tensor, bool]"
"""What acts in a forward, the plain input, and whether the module was given changed inputs."""


class Learning:
    """The trained side of a slot."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.rows: Tensor | None = None
        """Progress through denoising of every sample (batch,), where a batch has several."""
        self._frozen: dict[tuple[int, torch.device, torch.dtype], tuple[Form, ...]] = {}
        self._now: dict[int, _Held] = {}
        self._traced: _Held | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Learning:
        from copy import deepcopy

        copy = Learning.__new__(Learning)
        memo[id(self)] = copy
        copy.slot, copy.rows, copy._frozen, copy._now = deepcopy(self.slot, memo), self.rows, {}, {}
        copy._traced = None
        return copy

    @property
    def active(self) -> bool:
        """Whether this forward is one of training."""
        return torch.is_grad_enabled() and any(e.trainable and e.multiplier != 0.0 for e in self.slot.entries)

    def forget(self) -> None:
        """The frozen adapters of the slot are others now."""
        self._frozen = {}

    # -- what acts ---------------------------------------------------------------------------------------------

    def _actives(self, device: torch.device, dtype: torch.dtype) -> list[Active]:
        found = []
        for entry in self.slot.entries:
            if entry.multiplier == 0.0:
                continue
            learner = entry.learner
            dropouts = learner.dropouts if learner is not None and learner.training else _NONE
            if dropouts.module_dropout and float(torch.rand(())) < dropouts.module_dropout:
                continue
            forms = self._forms(entry, device, dtype)
            found.append(Active(entry.multiplier, forms, dropouts))
        return found

    def _forms(self, entry: Entry, device: torch.device, dtype: torch.dtype) -> tuple[Form, ...]:
        if not entry.trainable:
            place = (id(entry), device, dtype)
            known = self._frozen.get(place)
            if known is None:
                with torch.no_grad():
                    known = tuple(form.to(device, dtype) for form in self.slot.forms_of(entry))
                self._frozen[place] = known
            return known
        # A list, not a generator: a compiler does not go on where one of these breaks off.
        return tuple([form.to(device, dtype) for form in self.slot.forms_of(entry, training=True)])

    # -- the forward -------------------------------------------------------------------------------------------

    def before(self, x: Tensor) -> Tensor | None:
        """What the module is to see in place of x, or None for x itself."""
        actives = self._actives(x.device, x.dtype)
        folds = _folds(actives)
        self._hold((actives, x, folds))
        if not folds:
            return None
        seen = x
        for active in actives:
            for form in active.forms:
                if isinstance(form, InputChange):
                    seen = torch.add(seen, form.inner.change(x, self.slot.layer), alpha=active.strength)
                elif isinstance(form, TwoSided):
                    seen = seen + form.inputs.change(x, self.slot.layer)
        return seen

    def _hold(self, held: _Held) -> None:
        """Keep it for `after`: by thread, of which a compiler knows nothing and traces one."""
        if torch.compiler.is_compiling():
            self._traced = held
        else:
            self._now[threading.get_ident()] = held

    def _release(self) -> _Held | None:
        if torch.compiler.is_compiling():
            held, self._traced = self._traced, None
            return held
        return self._now.pop(threading.get_ident(), None)

    def after(self, x: Tensor, output: Tensor, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """The output with the changes of all adapters."""
        held = self._release()
        if held is None:  # an input that is no activation: an embedding's ids
            held = (self._actives(output.device, output.dtype), x, False)
        actives, x, folded = held
        bias = self.slot.base_bias()
        y = output
        for active in actives:
            y = _Step(self, active, x, output, bias, forward, folded).onto(y)
        return y


def _folds(actives: Sequence[Active]) -> bool:
    """Whether the module can see changed inputs: nothing needs its product of the plain ones."""
    forms = [form for active in actives for form in active.forms]
    if not any(isinstance(form, (InputChange, TwoSided)) for form in forms):
        return False
    if any(active.dropouts.within and any(map(_is_input, active.forms)) for active in actives):
        return False
    if any(isinstance(form, OutputChange) for form in forms):
        return False
    if any(isinstance(form, TwoSided) for form in forms):
        # One adapter at full strength: its scale of the outputs acts on what the module makes of rotated inputs.
        return len(actives) == 1 and actives[0].strength == 1.0 and sum(map(_is_input, forms)) == 1
    return True


def _is_input(form: Form) -> bool:
    return isinstance(form, (InputChange, TwoSided))


@dataclass(frozen=True)
class _Step:
    """One adapter's part of a forward."""

    learning: Learning
    active: Active
    x: Tensor
    output: Tensor
    bias: Tensor | None
    forward: Callable[[Tensor], Tensor]
    folded: bool

    def onto(self, y: Tensor) -> Tensor:
        """y with this adapter's change."""
        layer, strength, dropouts = self.learning.slot.layer, self.active.strength, self.active.dropouts
        rest: Tensor | None = None
        for form in self.active.forms:
            if isinstance(form, LowRank):
                y = self._low_rank(form, y)
            elif isinstance(form, BiasChange):
                y = y + (layer.channels(form.vector, y) * strength).to(y.dtype)
            elif not dropouts.within:
                y = self._added(form, y)
            elif (change := self._change(form)) is not None:
                rest = change if rest is None else rest + change
        if rest is None:
            return y
        return torch.add(y, _dropped(rest, dropouts, layer).to(y.dtype), alpha=strength)

    def _added(self, form: Form, y: Tensor) -> Tensor:
        """y with all of a form's change."""
        layer, strength = self.learning.slot.layer, self.active.strength
        if isinstance(form, Branch):
            return form.onto(y, self.x, layer, strength)
        if isinstance(form, OutputChange) and isinstance(form.inner, Turns) and y is self.output and strength == 1.0:
            return form.inner.turned(y, None if self.bias is None else self.bias.to(y.dtype))
        change = self._change(form)
        return y if change is None else torch.add(y, change.to(y.dtype), alpha=strength)

    def _change(self, form: Form) -> Tensor | None:
        layer = self.learning.slot.layer
        if isinstance(form, Branch):
            return form.change(self.x, layer)
        if isinstance(form, InputChange):
            return None if self.folded else self._product(form.inner.change(self.x, layer))
        if isinstance(form, OutputChange):
            return form.inner.change(self._plain(self.output), layer)
        assert isinstance(form, TwoSided)
        if self.folded:
            return form.outputs.change(self._plain(self.output), layer)
        turned = self._product(self.x + form.inputs.change(self.x, layer))
        return turned + form.outputs.change(turned, layer) - self._plain(self.output)

    def _product(self, v: Tensor) -> Tensor:
        """W v, by the module's own forward."""
        return self._plain(self.forward(v))

    def _plain(self, output: Tensor) -> Tensor:
        """A product of the module without its bias."""
        if self.bias is None:
            return output
        return output - self.learning.slot.layer.channels(self.bias, output).to(output.dtype)

    def _low_rank(self, form: LowRank, y: Tensor) -> Tensor:
        """y + strength * scale * up (down x), with what sd-scripts' LoRA leaves out between the halves."""
        layer, dropouts = self.learning.slot.layer, self.active.dropouts
        scale = form.scale * self.active.strength
        down, groups = down_of(form, layer), layer.groups if layer.kind == "conv" else 1
        if groups > 1:
            down = down.repeat(groups, *(1,) * (down.ndim - 1))
        h = layer.apply(self.x, down.T if layer.kind == "embedding" else down, groups)
        if dropouts.within:
            h = _thinned(h, dropouts, layer)
        if form.mask is not None:
            h = h * self._mask(form.mask, h, groups)
        if layer.kind == "linear" and y.ndim > 2 and h.dtype == y.dtype:
            up = form.up if scale == 1.0 else form.up * scale
            flat = torch.addmm(y.reshape(-1, y.shape[-1]), h.reshape(-1, h.shape[-1]), up.T)
            return flat.view(y.shape)
        return torch.add(y, layer.pointwise(h, form.up, groups).to(y.dtype), alpha=scale)

    def _mask(self, mask: Callable[[float], Tensor], h: Tensor, groups: int) -> Tensor:
        """The factors of the ranks, of every sample where they are at several places of the denoising."""
        progress, layer = self.learning.rows, self.learning.slot.layer
        if progress is None or progress.numel() < 2 or h.shape[0] % progress.numel():
            rows = mask(self.learning.slot.progress)
        else:
            each = torch.stack([mask(value) for value in progress.tolist()])
            rows = each.repeat_interleave(h.shape[0] // progress.numel(), 0)
        return layer.channels(torch.cat([rows.to(h.device, h.dtype)] * groups, dim=-1), h)


def _thinned(h: Tensor, dropouts: Dropouts, layer: Layer) -> Tensor:
    """What lies between the halves of a pair, thinned out as by sd-scripts."""
    if dropouts.dropout:
        h = F.dropout(h, dropouts.dropout)
    if dropouts.rank_dropout:
        # A rank is left out for all places of a sample.
        kept = torch.rand(h.shape[0], h.shape[layer.channel_dim], device=h.device) > dropouts.rank_dropout
        h = h * layer.channels(kept.to(h.dtype), h) / (1.0 - dropouts.rank_dropout)
    return h


def _dropped(change: Tensor, dropouts: Dropouts, layer: Layer) -> Tensor:
    """A change of the output, thinned out as by LyCORIS."""
    if dropouts.rank_dropout:
        channels = change.shape[layer.channel_dim]
        rows = (torch.rand(channels, device=change.device) > dropouts.rank_dropout).to(change.dtype)
        if dropouts.scale_rank_dropout:
            rows = rows / rows.mean().clamp_min(1e-6)
        change = change * layer.channels(rows, change)
    return F.dropout(change, dropouts.dropout) if dropouts.dropout else change

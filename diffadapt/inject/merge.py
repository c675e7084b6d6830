"""Merging one module: the weight in place, float32 accumulation, one rounding, and an exact way back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import MergeError
from diffadapt.inject.codec import INTEGERS
from diffadapt.inject.locate import weight_of
from diffadapt.inject.memory import MASK, CodeMemory, CopyMemory, FileMemory, Memory, checksum
from diffadapt.inject.quantised import refusal
from diffadapt.inject.terms import Terms, gather_terms
from diffadapt.report import LayerMerge

Remember = Literal["copy", "code", "file"]
SAMPLE_ROWS = 32
"""Rows on which survival is measured: enough for two digits, a hundredth of a merge's work."""

MixKey = tuple[tuple[int, float], ...]
"""(identity of the delta, strength) of everything merged into a module: the same key again is no work."""


def mix_key(deltas: Sequence[tuple[float, Delta]]) -> MixKey:
    return tuple((id(delta), strength) for strength, delta in deltas)


@dataclass
class MergedWeight:
    """A parameter that a merge changed: how to get its base back, and how the merge left it."""

    memory: Memory
    sum: int
    dtype: torch.dtype

    def check(self, parameter: Tensor) -> str | None:
        """Why the base's bits cannot be restored into the parameter, or None."""
        if parameter.dtype != self.dtype:
            if isinstance(self.memory, CodeMemory):
                return f"the weight was cast from {self.dtype} to {parameter.dtype}, and its code reads only the former"
            return None
        if checksum(parameter) != self.sum:
            return "somebody else changed the weight since the merge"
        return None

    def restore(self, parameter: Tensor) -> None:
        self.memory.restore(parameter)


@dataclass
class MergedModule:
    """One module's merge."""

    module: nn.Module
    layer: Layer
    terms: list[tuple[float, Delta]]
    weight: MergedWeight | None
    bias: MergedWeight | None
    result: LayerMerge

    @property
    def key(self) -> MixKey:
        return mix_key(self.terms)

    def base_weight(self) -> Tensor | None:
        if self.weight is None:
            return None
        parameter = weight_of(self.module)
        return self.weight.memory.base(parameter).to(parameter.device)

    def base_bias(self) -> Tensor | None:
        if self.bias is None:
            return None
        parameter = weight_of(self.module, "bias")
        return self.bias.memory.base(parameter).to(parameter.device)

    def check(self) -> str | None:
        for name, merged in (("weight", self.weight), ("bias", self.bias)):
            if merged is not None and (reason := merged.check(getattr(self.module, name))):
                return reason
        return None

    @torch.no_grad()
    def restore(self) -> None:
        """The base's bits, back into the parameters. Call `check` first."""
        for name, merged in (("weight", self.weight), ("bias", self.bias)):
            if merged is not None:
                merged.restore(getattr(self.module, name).data)

    @property
    def room(self) -> Tensor | None:
        """The memory of the weight's copy, of no more use once the module is restored."""
        memory = self.weight.memory if self.weight is not None else None
        return memory.tensor if isinstance(memory, CopyMemory) else None

    @property
    def kept(self) -> list[Memory]:
        return [m.memory for m in (self.weight, self.bias) if m is not None]


def refuse_unmergeable(path: str, module: nn.Module, deltas: Sequence[tuple[float, Delta]]) -> None:
    """Raise MergeError, before anything is changed, for a module or a delta that cannot be merged."""
    for _, delta in deltas:
        if delta.live_only:
            raise MergeError(f"{path}: {delta.algorithm} cannot be merged: {delta.live_only}. Keep it live.")
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.device.type == "meta":
        raise MergeError(
            f"{path}: the weight is offloaded (on the meta device). Merge before enabling offload, or stay live."
        )
    if (reason := refusal(module)) is not None:
        raise MergeError(f"{path}: {reason}. Merging would not be exact. Keep it live, or load the model unquantised.")
    if getattr(module, "bias", None) is None and any(delta.bias_delta(None) is not None for _, delta in deltas):
        raise MergeError(f"{path}: the adapter changes a bias that the module does not have. Keep it live.")


def measure(terms: Terms, weight: Tensor) -> LayerMerge:
    """How much of the change survives the rounding of the weight's dtype, on evenly spaced rows."""
    if weight.dtype in (torch.float32, torch.float64) or not terms.rows:
        return LayerMerge(1.0, 0.0)
    count = min(SAMPLE_ROWS, terms.rows)
    rows = torch.arange(count, device=weight.device) * terms.rows // count
    intended = terms.sample(rows)
    base = weight.reshape(terms.rows, -1)[rows].float()
    realised = (base + intended).to(weight.dtype).float().sub_(base)
    size = float(intended.square().sum())
    if size == 0.0:
        return LayerMerge(1.0, 0.0)
    gain = float((realised * intended).sum()) / size
    return LayerMerge(gain, (float((realised - intended).square().sum()) / size) ** 0.5)


@torch.no_grad()
def merge_module(
    module: nn.Module,
    layer: Layer,
    deltas: Sequence[tuple[float, Delta]],
    remember: Remember,
    stored: Callable[[str], Tensor | None],
    max_loss: float | None = None,
    room: Tensor | None = None,
) -> MergedModule | LayerMerge:
    """Merge deltas into a module that holds its base bits.

    stored: gives a parameter as the base's file holds it (for "file"), or None. max_loss: leave the module as it was,
    and return only the measurement, where the relative loss by rounding is larger. room: memory for a copy.
    """
    weight = module.weight.data
    assert isinstance(weight, Tensor)
    with torch.inference_mode(False):
        terms = gather_terms(deltas, layer, weight)
        result = measure(terms, weight)
        if max_loss is not None and result.loss > max_loss:
            return LayerMerge(result.survived, result.loss, live=True)
        changes = bias_changes(module, deltas, weight)  # before the weight: some depend on the base's
        merged = _merge_weight(weight, terms, remember, lambda: stored("weight"), room)
        bias = merge_bias(module, changes)
    return MergedModule(module, layer, list(deltas), merged, bias, result)


def _merge_weight(
    weight: Tensor, terms: Terms, remember: Remember, stored: Callable[[], Tensor | None], room: Tensor | None
) -> MergedWeight | None:
    if terms.left is None and terms.dense is None:
        return None
    # Channels-last convolutions: merge a copy in the order of rows, and write it back.
    ordered = weight.contiguous()
    flat = ordered.view(terms.rows, terms.columns)
    memory: Memory | None = None
    total: int | None = None
    if remember == "file":
        mapped = stored()
        if mapped is not None and _same_bits(mapped, weight):
            memory = FileMemory(mapped)
            total = add_in_place(flat, terms, None)
    # The code is read with the sum computed again: a dense one would have to be kept, which costs more than the copy.
    if remember == "code" and terms.dense is None:
        memory = CodeMemory.merge(flat, terms)
    if memory is None:
        memory = CopyMemory(ordered, room)
        total = add_in_place(flat, terms, memory.tensor.view(flat.shape))
    if ordered is not weight:
        weight.copy_(ordered)
        total = None
    return MergedWeight(memory, checksum(weight) if total is None else total, weight.dtype)


def _same_bits(mapped: Tensor, weight: Tensor) -> bool:
    if mapped.numel() != weight.numel() or not mapped.is_floating_point():
        return False
    cast = mapped.to(weight.device, weight.dtype).reshape(weight.shape)
    integer = INTEGERS[weight.element_size()]  # as floats, -0 would equal +0
    return bool(torch.equal(cast.view(integer), weight.view(integer)))


def add_in_place(flat: Tensor, terms: Terms, copy: Tensor | None) -> int:
    """weight += sum, row block by row block; returns the checksum of the result.

    flat: (rows, columns), any floating dtype. copy: takes the base on the way, block by block while it is in the cache.
    """
    scratch = None if flat.dtype == torch.float32 else terms.buffer(flat.device)
    aligned = terms.columns * flat.element_size() % 8 == 0 and flat.data_ptr() % 8 == 0
    total = 0
    for start, stop in terms.blocks():
        rows = flat[start:stop]
        if copy is not None:
            copy[start:stop].copy_(rows)
        if scratch is None:
            terms.add_to(rows, start, stop)
        else:
            block = scratch[: stop - start]
            rows.copy_(terms.add_to(block.copy_(rows), start, stop))
        if aligned:
            total += checksum(rows)
    return total & MASK if aligned else checksum(flat)


def bias_changes(
    module: nn.Module, deltas: Sequence[tuple[float, Delta]], weight: Tensor
) -> list[tuple[float, Tensor]]:
    """(strength, change) of every delta that moves the bias. weight: the base's."""
    bias = getattr(module, "bias", None)
    base = bias.data if isinstance(bias, Tensor) else None
    return [(m, c) for m, delta in deltas if (c := delta.bias_change(base, lambda: weight)) is not None]


def merge_bias(module: nn.Module, changes: Sequence[tuple[float, Tensor]]) -> MergedWeight | None:
    """Add the changes to the module's bias in place, and keep a copy as the way back."""
    bias = getattr(module, "bias", None)
    base = bias.data if isinstance(bias, Tensor) else None
    if not changes:
        return None
    if base is None:  # `refuse_unmergeable` comes first
        raise MergeError(f"{type(module).__name__} has no bias to merge a bias change into; keep this adapter live.")
    total = base.float()
    for strength, change in changes:
        total = total + strength * change.to(total.device)
    memory = CopyMemory(base)
    memory.tensor.copy_(base)
    base.copy_(total)
    return MergedWeight(memory, checksum(base), base.dtype)

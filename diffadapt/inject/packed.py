"""Merging into a quantised weight: as numbers in float32, packed again by its own library, and the packed base kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import MergeError
from diffadapt.inject.memory import MASK, Memory, checksum
from diffadapt.inject.merge import MergedModule, bias_changes, merge_bias
from diffadapt.inject.quantised import quantiser_of
from diffadapt.inject.quantiser import Quantiser
from diffadapt.inject.terms import Terms, gather_terms
from diffadapt.report import LayerMerge


class PackedMemory(Memory):
    """The packed base itself: no copy, as the merge puts another parameter in its place."""

    kind: ClassVar[str] = "packed"

    def __init__(self, quantiser: Quantiser, module: nn.Module) -> None:
        self.quantiser, self.module = quantiser, module
        self.value = quantiser.take(module)
        self.sum = 0

    def base(self, merged: Tensor) -> Tensor:
        return self.quantiser.dequantise(self.module, self.value).to(merged.device)

    def bits(self, value: Tensor) -> int:
        """A sum over all the tensors that a packed weight is made of."""
        return sum(checksum(part) for part in self.quantiser.parts(self.module, value)) & MASK

    def put_back(self) -> None:
        """Make the base the module's weight again, where the module is now and in the dtype it computes in."""
        now, value = self.module.weight, self.value
        assert isinstance(now, Tensor)
        if now.device != value.device or (value.is_floating_point() and now.dtype != value.dtype):
            value = value.to(now.device, now.dtype) if value.is_floating_point() else value.to(now.device)
        self.quantiser.install(self.module, value)

    @property
    def nbytes(self) -> int:
        return sum(part.numel() * part.element_size() for part in self.quantiser.parts(self.module, self.value))


@dataclass
class MergedPacked(MergedModule):
    """One quantised module's merge; its bias, which is not quantised, is merged as any other."""

    packed: PackedMemory | None = None

    def base_weight(self) -> Tensor | None:
        return None if self.packed is None else self.packed.base(self.module.weight)  # type: ignore[arg-type]

    def check(self) -> str | None:
        if self.packed is not None:
            weight = self.module.weight
            if not isinstance(weight, Tensor) or quantiser_of(weight) is not self.packed.quantiser:
                return "somebody else has put another weight in the place of the quantised one"
            if self.packed.bits(weight) != self.packed.sum:
                return "somebody else changed the weight since the merge"
        return super().check()

    def restore(self) -> None:
        super().restore()
        if self.packed is not None:
            self.packed.put_back()

    @property
    def kept(self) -> list[Memory]:
        return [*super().kept, *([] if self.packed is None else [self.packed])]


@torch.no_grad()
def merge_packed(
    module: nn.Module, layer: Layer, deltas: Sequence[tuple[float, Delta]], max_loss: float | None = None
) -> MergedModule | LayerMerge:
    """`merge_module` for a quantised weight. Raises MergeError, with the module as it was, where its library fails or
    gives something else than the module had."""
    quantiser = quantiser_of(module.weight)
    assert quantiser is not None  # asked before
    with torch.inference_mode(False):
        memory = PackedMemory(quantiser, module)
        base = quantiser.dequantise(module, memory.value).to(torch.float32)
        if tuple(base.shape) != layer.shape:
            raise MergeError(
                f"{quantiser.name} gives a weight of shape {tuple(base.shape)} for a {layer.kind} layer of shape "
                f"{layer.shape}. Keep the adapter live."
            )
        terms = gather_terms(deltas, layer, base)
        if terms.left is None and terms.dense is None:
            bias = merge_bias(module, bias_changes(module, deltas, base))
            return MergedPacked(module, layer, list(deltas), None, bias, LayerMerge(1.0, 0.0))
        merged = _sum(base, terms)
        packed = _pack(memory, merged)
        result = _compare(base, merged, quantiser.dequantise(module, packed))
        if max_loss is not None and result.loss > max_loss:
            return LayerMerge(result.survived, result.loss, live=True)
        bias = merge_bias(module, bias_changes(module, deltas, base))
        memory.sum = memory.bits(packed)
        quantiser.install(module, packed)
    return MergedPacked(module, layer, list(deltas), None, bias, result, memory)


def _sum(base: Tensor, terms: Terms) -> Tensor:
    merged = base.clone(memory_format=torch.contiguous_format)
    flat = merged.view(terms.rows, terms.columns)
    for start, stop in terms.blocks():
        terms.add_to(flat[start:stop], start, stop)
    return merged


def _pack(memory: PackedMemory, merged: Tensor) -> Tensor:
    quantiser, module, value = memory.quantiser, memory.module, memory.value
    try:
        packed = quantiser.requantise(module, value, merged)
    except (AssertionError, ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise MergeError(
            f"{quantiser.name} could not quantise the merged weight again ({type(error).__name__}: {error}). "
            "Nothing was changed. Keep the adapter live."
        ) from error
    if type(packed) is not type(value) or _make(memory, packed) != _make(memory, value):
        raise MergeError(
            f"{quantiser.name} made another kind of weight ({type(packed).__name__}) of the merged one than the module "
            f"has ({type(value).__name__} {_make(memory, value)}). Nothing was changed. Keep the adapter live."
        )
    return packed


def _make(memory: PackedMemory, value: Tensor) -> list[tuple[torch.Size, torch.dtype]]:
    return [(part.shape, part.dtype) for part in memory.quantiser.parts(memory.module, value)]


def _compare(base: Tensor, merged: Tensor, realised: Tensor) -> LayerMerge:
    """How much of the change is in the packed weight. A new grid also moves what the change leaves alone: that counts
    as loss too."""
    intended = merged.sub_(base)
    change = realised.to(torch.float32) - base
    size = float(intended.square().sum())
    if size == 0.0:
        return LayerMerge(1.0, 0.0)
    gain = float((change * intended).sum()) / size
    loss = (float(change.sub_(intended).square().sum()) / size) ** 0.5
    if loss != loss:
        raise MergeError("The merged weight does not fit the range of its quantised type. Keep the adapter live.")
    return LayerMerge(gain, loss)

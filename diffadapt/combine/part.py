"""One adapter's share in a target of a combination: its delta, its weight, and the base weight where that is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta, f32
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import CombineError


@dataclass(frozen=True, eq=False)
class Part:
    """A delta at a target.

    owner: the adapter's name, for messages. weight: what the caller gave it. shape: of the target's weight.
    base: gives the base weight, or raises CombineError where none was given.
    """

    owner: str
    delta: Delta
    weight: float
    shape: tuple[int, ...]
    base: Callable[[], Tensor]

    @property
    def flat(self) -> tuple[int, int]:
        """The shape as a matrix, (out, in * kernel)."""
        return self.shape[0], math.prod(self.shape[1:])

    def pair(self) -> tuple[Tensor, Tensor] | None:
        """The exact change as up (out, r) and down (r, in * kernel), float32, the weight not yet in it; or None."""
        found = self.delta.low_rank()
        if found is None or found.mask is not None:
            return None
        up, down = f32(found.up).flatten(1) * found.scale, f32(found.down).flatten(1)
        # An embedding's pair makes the transposed change; of a square weight its shape does not tell.
        turned = isinstance(self.delta, LoRA) and self.delta.transposed
        return (up, down) if (up.shape[0], down.shape[1]) == self.flat and not turned else (down.T, up.T)

    def dense(self) -> Tensor:
        """The change as a matrix (out, in * kernel) in float32, the weight not yet in it.

        Raises CombineError where the base weight takes part in it and none was given.
        """
        alone = self.delta.shape_alone is not None
        weight = torch.zeros(()).expand(self.shape) if alone else self.base()
        return self.delta.weight_delta(weight).reshape(self.flat)


def shape_of(
    deltas: Sequence[Delta], known: tuple[int, ...] | None, usual: Sequence[tuple[int, ...]] = ()
) -> tuple[int, ...]:
    """The shape of the weight that deltas act on: the base's, or else what the most telling of them says.

    known: the base's. usual: those of the family's full-size models, for files that flatten a convolution's kernel.
    Raises CombineError where the deltas contradict each other, or none tells.
    """
    said = [shape for delta in deltas if (shape := delta.shape_alone) is not None]
    if known is None and not said:
        raise CombineError("the shape of the weight is not in the files; give the base model: combine(..., base=pipe).")
    first = known if known is not None else max(said, key=len)
    for shape in said:
        if not _alike(shape, first):
            raise CombineError(f"changes of the shapes {said} meet on one weight; the adapters are for other models.")
    return max((first, *(shape for shape in usual if _alike(shape, first))), key=len)


def _alike(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes are the same as matrices (out, in * kernel)."""
    return (one[0], math.prod(one)) == (other[0], math.prod(other))

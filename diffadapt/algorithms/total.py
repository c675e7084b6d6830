"""Several deltas on one module add up: a LoRA with a bias difference, an extraction with its sparse residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class Sum(Delta):
    """The sum of its parts, each taken against the base weight; at least two, of different algorithms."""

    algorithm: ClassVar[str] = "sum"

    parts: tuple[Delta, ...]

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        """None: a sum has no tensors of its own; `parse_group` makes it."""
        return None

    @property
    def _of_weight(self) -> list[Delta]:
        """The parts that change the weight."""
        return [part for part in self.parts if not isinstance(part, Full) or part.changes_weight]

    def weight_delta(self, weight: Tensor) -> Tensor:
        total = f32(weight).new_zeros(weight.shape)
        for part in self._of_weight:
            total = total + part.weight_delta(weight)
        return total

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        changes = [change for part in self.parts if (change := part.bias_delta(bias)) is not None]
        return sum(changes[1:], changes[0]) if changes else None

    def bias_change(self, bias: Tensor | None, weight: Callable[[], Tensor]) -> Tensor | None:
        changes = [change for part in self.parts if (change := part.bias_change(bias, weight)) is not None]
        return sum(changes[1:], changes[0]) if changes else None

    def low_rank(self) -> LowRank | None:
        pairs = [part.low_rank() for part in self._of_weight]
        known = [pair for pair in pairs if pair is not None]
        if len(known) != len(pairs) or not known:
            return None
        if len(known) == 1:
            return known[0]
        ups = [f32(pair.up) * pair.scale for pair in known]
        return LowRank(torch.cat([f32(pair.down).flatten(1) for pair in known]), torch.cat(ups, dim=1))

    @property
    def shape_alone(self) -> tuple[int, ...] | None:
        shapes = [part.shape_alone for part in self._of_weight]
        return None if None in shapes else next(iter(shapes), None)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        return tuple(form for part in self.parts for form in part.forms(layer, weight, bias))

    def check(self, layer: Layer) -> None:
        for part in self.parts:
            part.check(layer)

    def peft_fields(self, module: str) -> Fields | None:
        """One delta and replaced biases beside it: LoRA's `bias="lora_only"`."""
        main = [part for part in self.parts if not _of_bias(part)]
        fields = main[0].peft_fields(module) if len(main) == 1 and len(self.parts) > 1 else None
        return {**fields, "bias": "lora_only"} if fields is not None and fields["peft_type"] == "LORA" else None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of all parts. Raises AlgorithmError where two parts have tensors of one role."""
        named: dict[str, Tensor] = {}
        for part in self.parts:
            for role, tensor in part.tensors().items():
                if role in named:
                    raise AlgorithmError(
                        f"a sum of {', '.join(p.algorithm for p in self.parts)} needs '{role}' twice on one module, "
                        "which no file can hold. Combine the parts into one delta first."
                    )
                named[role] = tensor
        return named

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in self.parts)

    @property
    def rank(self) -> int | None:
        return next((part.rank for part in self.parts if part.rank is not None), None)

    @property
    def live_only(self) -> str | None:
        return next((part.live_only for part in self.parts if part.live_only is not None), None)

    def rows(self, start: int, stop: int) -> Sum:
        return Sum(tuple(part.rows(start, stop) for part in self.parts))


def _of_bias(part: Delta) -> bool:
    """Whether a part is a new bias, and nothing else."""
    return isinstance(part, Full) and part.new_bias is not None and not part.changes_weight and part.diff_b is None


def same_change(one: Delta, other: Delta) -> bool:
    """Whether two low-rank deltas of one module are the same product, to a few parts in a thousand.

    Computed from the factors' small Gram products: |A - B|^2 = |A|^2 + |B|^2 - 2 <A, B>.
    """
    pairs = [delta.low_rank() for delta in (one, other)]
    first, second = pairs
    if first is None or second is None or first.up.shape[0] != second.up.shape[0]:
        return False
    if first.down[0].numel() != second.down[0].numel():
        return False
    ours, theirs, both = _inner(first, first), _inner(second, second), _inner(first, second)
    return abs(ours + theirs - 2 * both) <= 1e-5 * max(ours, theirs)


def _inner(one: LowRank, other: LowRank) -> float:
    """<one, other> of the dense matrices."""
    downs = one.down.flatten(1).double() @ other.down.flatten(1).double().T
    ups = one.up.flatten(1).double().T @ other.up.flatten(1).double()
    return float((downs * ups).sum()) * one.scale * other.scale

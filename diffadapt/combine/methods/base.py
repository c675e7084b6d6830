"""What a method of combination is: one small dataclass, its options as fields, its formula and source in its file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.combine.build import dense_delta, pair_delta
from diffadapt.combine.part import Part
from diffadapt.combine.space import Space
from diffadapt.errors import CombineError


@dataclass(frozen=True)
class Method(ABC):
    """How the changes of one weight become one. Fields are the method's options."""

    name: ClassVar[str]

    keeps_one: ClassVar[bool] = True
    """Whether a single adapter of weight 1 comes out as it is, whatever the options."""

    needs_shape: ClassVar[bool] = True
    """Whether parts must know the shape of their weight; where not, `Part.shape` may be ()."""

    takes: ClassVar[int | None] = None
    """How many adapters it is for; None: any number."""

    signed: ClassVar[bool] = True
    """Whether weights may be negative."""

    by_target: ClassVar[bool] = False
    """Whether an adapter may have another weight on every target."""

    def check(self, weights: Sequence[float]) -> None:
        """Raise CombineError unless the method takes as many adapters as there are weights, and these weights."""
        if self.takes is not None and len(weights) != self.takes:
            raise CombineError(f"{self.name}: takes {self.takes} adapters, not {len(weights)}.")
        if not self.signed and any(weight < 0 for weight in weights):
            raise CombineError(f"{self.name}: a weight is {min(weights)}; expected none below 0.")

    def over(self, layers: Iterable[Sequence[Part]]) -> Method:
        """The method, having seen all layers, where its rule depends on them. layers: the parts of every weight, made
        as they are iterated, so that a method that does not look costs nothing."""
        return self

    @abstractmethod
    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        """The combined change, and how much of it the rank cost: the relative Frobenius error, 0 where it is exact.

        parts: at least one, all of one weight. rank: of the result; None: what the method gives, exactly.
        """

    def vector(self, changes: Sequence[tuple[float, Tensor]]) -> Tensor:
        """The combined change of a bias or a norm from (weight, change) pairs: their weighted sum, unless a method says
        otherwise."""
        return torch.stack([weight * change for weight, change in changes]).sum(0)


class InSpace(Method):
    """A method that is made of sums, singular values and vectors, and so acts on cores alone."""

    @abstractmethod
    def core(self, space: Space, weights: Sequence[float]) -> Tensor:
        """The combined core."""

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        space = Space.of(parts)
        core = self.core(space, [part.weight for part in parts])
        if rank is None and not space.is_small:
            return dense_delta(core, parts), 0.0
        found = space.factors(core, rank)
        return pair_delta(found.up, found.down, parts), found.lost

"""What a method of combination is: one small dataclass, its options as fields, its formula and source in its file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.combine.build import dense_delta, pair_delta
from diffadapt.combine.part import Part
from diffadapt.combine.space import Space, truncated


@dataclass(frozen=True)
class Method(ABC):
    """How the changes of one weight become one. Fields are the method's options."""

    name: ClassVar[str]

    keeps_one: ClassVar[bool] = True
    """Whether a single adapter of weight 1 comes out as it is, whatever the options."""

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


class Elementwise(Method):
    """A method that decides number by number of the weight, and so needs the changes themselves.

    Its result has full rank: it is kept dense unless a rank is asked for.
    """

    @abstractmethod
    def dense(self, changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The combined change (out, in * kernel). changes: without their weights; may be overwritten."""

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        change = self.dense([part.dense() for part in parts], [part.weight for part in parts])
        if rank is None:
            return dense_delta(change, parts), 0.0
        found = truncated(change, rank)
        return pair_delta(found.up, found.down, parts), found.lost

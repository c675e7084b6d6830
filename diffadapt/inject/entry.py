"""One adapter at one module."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.inject.learner import Learner


@dataclass(eq=False)
class Entry:
    """One adapter's delta on a slot. multiplier: the strength in force, 0 when inactive or merged. learner: where the
    delta's trained tensors are, of an adapter in training."""

    owner: str
    delta: Delta
    multiplier: float = 1.0
    learner: Learner | None = None

    _never: ClassVar[Iterator[int]] = itertools.count(-1, -1)

    @property
    def trainable(self) -> bool:
        return self.learner is not None

    def now(self) -> Delta:
        """The delta with its tensors as they are now."""
        return self.delta if self.learner is None else self.learner.now(self.delta)

    def stamp(self) -> int:
        """Another number after every change in place of what is trained, as an optimizer makes them."""
        if self.learner is None:
            return 0
        if self.learner.moved:  # FSDP: whether they have changed cannot be told
            return next(self._never)
        return sum(tensor._version for tensor in self._learnt)

    @cached_property
    def _learnt(self) -> list[Tensor]:
        return [tensor for _, tensor in self.delta.learnt()]

"""What an untrained delta is made from: the layer, the numbers that a user gives, and a source of random numbers.

Every algorithm's `fresh` draws its tensors as its trainer does, in the trainer's shapes, so that a file of diffadapt is
one that the trainer could have begun.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class Start:
    """One module's beginning.

    weight: gives the base weight (any floating dtype), without any adapter. rank: of this module. alpha: None where the
    user gave none: each algorithm has its trainer's default. options: what the algorithm's `fresh` knows by name.
    module: its path. bank: what all modules of the adapter share. largest: (out, in) of the adapter's largest Linear.
    """

    layer: Layer
    weight: Callable[[], Tensor]
    rank: int
    alpha: float | None
    generator: torch.Generator
    options: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""
    bank: Bank = field(default_factory=Bank)
    largest: tuple[int, int] = (0, 0)

    @property
    def rows(self) -> int:
        return self.layer.shape[0]

    @property
    def columns(self) -> int:
        """in / groups * kernel."""
        return math.prod(self.layer.shape[1:])

    @property
    def scale_alpha(self) -> float:
        """The alpha of the LoRA family; none, or 0, is the rank (scale 1)."""
        return float(self.alpha or self.rank)

    def option(self, name: str, default: Any) -> Any:
        """An option of the algorithm, in the type of its default. Raises AlgorithmError for another type."""
        value = self.options.get(name, default)
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if default is not None and (type(value) is not type(default)):
            raise AlgorithmError(f"{name} is {value!r}; expected a {type(default).__name__} such as {default!r}.")
        return value

    def require(self, algorithm: str, kinds: tuple[str, ...] = ("linear", "conv"), *, ungrouped: bool = False) -> None:
        """Raise AlgorithmError for a layer that the algorithm's trainer does not train."""
        if self.layer.kind not in kinds or (ungrouped and self.layer.groups > 1):
            seen = f"{self.layer.kind} of {self.layer.groups} groups" if self.layer.groups > 1 else self.layer.kind
            raise AlgorithmError(
                f"{algorithm}: cannot be trained on a {seen} layer; expected {' or '.join(kinds)}. Leave the module "
                "out of the targets."
            )

    def require_rank(self, algorithm: str) -> None:
        """Raise AlgorithmError for a rank below 1, or above what the layer's weight can have."""
        most = min(self.rows, self.columns)
        if not 1 <= self.rank <= most:
            raise AlgorithmError(
                f"{algorithm}: rank {self.rank} on a {self.layer.kind} weight of shape {self.layer.shape}, which can "
                f"have 1 to {most}. Give a smaller rank, for these modules alone as rank={{'{self.module}': {most}, "
                "'default': ...}, or leave them out of the targets."
            )

    # -- the distributions of the trainers ---------------------------------------------------------------------

    def kaiming(self, *shape: int) -> Tensor:
        """Kaiming's uniform numbers with a = sqrt(5), as torch's own Linear begins: within 1 / sqrt(fan in)."""
        bound = 1 / math.sqrt(max(1, math.prod(shape[1:])))
        return torch.empty(shape).uniform_(-bound, bound, generator=self.generator)

    def normal(self, std: float, *shape: int) -> Tensor:
        """Normal numbers around 0."""
        return torch.empty(shape).normal_(0.0, std, generator=self.generator)


def factorised(dimension: int, factor: int) -> tuple[int, int]:
    """dimension = m * n with m <= n: m the divisor nearest to `factor` from below, or (-1) to the square root.

    A factor that divides is taken. Source: LyCORIS, whose files' shapes follow from it.
    """
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    limit = dimension if factor < 0 else factor
    divisors = (m for m in range(1, math.isqrt(dimension) + 1) if dimension % m == 0 and m <= limit)
    m = max(divisors, default=1)
    return m, dimension // m

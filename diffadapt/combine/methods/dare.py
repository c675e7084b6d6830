"""DARE: drop numbers at random and scale up the rest (Yu and others, arXiv 2311.03099).

drop(D_i) = D_i * m_i / density with m_i ~ Bernoulli(density), so that its mean over seeds is D_i.
`dare_linear`: D = sum(w_i drop(D_i)). `dare_ties`: drop in place of TIES' trim, then its election and mean.

The draws of a change depend on the seed and on the change alone: not on the order of adapters, layers or files, nor on
the device. Twice the same adapter has the same draws, so that w and -w cancel.

Limits. A dropped change differs from the change by noise of relative size sqrt(1 / density - 1): at a density of 0.5,
by as much as there is. That noise has full rank and is spread thin, so that large layers hardly feel it; at a rank, it
costs what the rank loses. See `ties` for what the election does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.combine.methods.elementwise import AtRank, Elected, Elementwise, generator
from diffadapt.combine.methods.pruning import expect_density, expect_seed


@dataclass(frozen=True)
class DareLinear(Elementwise):
    """sum(w_i drop(D_i)). density: the share that is kept, seed: of the draws."""

    name: ClassVar[str] = "dare_linear"

    density: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        expect_density(self.name, self.density)
        expect_seed(self.name, self.seed)

    def prune(self, change: Tensor, mark: bytes) -> Tensor:
        if self.density == 1:
            return change
        kept = torch.rand(change.shape, generator=generator(self.seed, mark)) < self.density
        return change.mul_(kept.to(change.device)).div_(self.density)


@dataclass(frozen=True)
class DareTies(Elected, DareLinear):
    """The weighted mean of what was not dropped and agrees with the elected sign. majority_sign: as of `ties`."""

    name: ClassVar[str] = "dare_ties"


@dataclass(frozen=True)
class DareLinearSVD(AtRank, DareLinear):
    """`dare_linear` at the largest rank of the parts."""

    name: ClassVar[str] = "dare_linear_svd"


@dataclass(frozen=True)
class DareTiesSVD(AtRank, DareTies):
    """`dare_ties` at the largest rank of the parts."""

    name: ClassVar[str] = "dare_ties_svd"

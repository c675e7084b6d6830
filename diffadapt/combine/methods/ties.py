"""Pruning by magnitude: `magnitude_prune`, and TIES, which elects a sign as well.

TIES (Yadav and others, arXiv 2306.01708): trim(D_i) keeps the int(density * size) largest numbers of each change; the
sign s of every place is elected; D = sum(w_i trim(D_i)[sign = s]) / (how many have the sign s).
`magnitude_prune` leaves the election out: D = sum(w_i trim(D_i)).

Limits. TIES makes a mean, not a sum: two adapters that agree everywhere come out at half their sum, and layers that
only one adapter has at its full strength; the weights are for making up for it (the paper's lambda). An adapter votes
and counts whatever its weight, 0 too; a negative one votes with the sign of its own numbers, as in PEFT. With two
adapters that disagree, "frequency" always elects +. The paper trims over the whole model, this, as PEFT, every weight
by itself. A LoRA's change has full size here: the result is a file of full size, or, with a rank, an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffadapt.combine.methods.elementwise import AtRank, Elected, Elementwise
from diffadapt.combine.methods.pruning import expect_density, largest


@dataclass(frozen=True)
class MagnitudePrune(Elementwise):
    """sum(w_i trim(D_i)). density: the share of every change that is kept, its largest numbers."""

    name: ClassVar[str] = "magnitude_prune"

    density: float = 0.5

    def __post_init__(self) -> None:
        expect_density(self.name, self.density)

    def prune(self, change: Tensor, mark: bytes) -> Tensor:
        if self.density == 1:
            return change
        return change.mul_(largest(change, int(self.density * change.numel())))


@dataclass(frozen=True)
class Ties(Elected, MagnitudePrune):
    """The weighted mean of what agrees with the elected sign. majority_sign: "total" elects the sign of the sum of the
    numbers, "frequency" that of the sum of their signs."""

    name: ClassVar[str] = "ties"


@dataclass(frozen=True)
class MagnitudePruneSVD(AtRank, MagnitudePrune):
    """`magnitude_prune` at the largest rank of the parts."""

    name: ClassVar[str] = "magnitude_prune_svd"


@dataclass(frozen=True)
class TiesSVD(AtRank, Ties):
    """`ties` at the largest rank of the parts."""

    name: ClassVar[str] = "ties_svd"

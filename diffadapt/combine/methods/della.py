"""DELLA: drop at random, small numbers more often than large ones (Deep and others, arXiv 2406.11617).

In every row of D_i (an output's weights) the numbers are ranked by magnitude; the probability q of being kept rises
with the rank, evenly from density - epsilon / 2 to density + epsilon / 2. drop(D_i) = D_i * m_i / q_i with
m_i ~ Bernoulli(q_i), so that its mean over seeds is D_i. `della_linear`: D = sum(w_i drop(D_i)). `della`: TIES'
election and mean of them.

mergekit's epsilon is half of this one, and it scales whole tensors by their norm instead of each number by its q.
The draws are as those of `dare_linear`, and so are the limits. A bias or a norm is one row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.combine.methods.elementwise import Elected, Elementwise, generator
from diffadapt.combine.methods.pruning import (
    expect_density,
    expect_seed,
    expect_share,
)
from diffadapt.errors import CombineError

BLOCK = 1 << 20
"""How many numbers are ranked at once: the ranks are int64, twice what the change itself takes."""


@dataclass(frozen=True)
class DellaLinear(Elementwise):
    """sum(w_i drop(D_i)). density: the share that is kept, epsilon: by how much it differs between the smallest and the
    largest, seed: of the draws."""

    name: ClassVar[str] = "della_linear"

    density: float = 0.5
    epsilon: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        expect_density(self.name, self.density)
        expect_share(self.name, "epsilon", self.epsilon)
        expect_seed(self.name, self.seed)
        half = self.epsilon / 2
        if self.density < 1 and not half < self.density <= 1 - half:
            raise CombineError(
                f"{self.name}: density {self.density} with epsilon {self.epsilon} keeps them with probabilities from "
                f"{self.density - half:g} to {self.density + half:g}; expected above 0 and at most 1."
            )

    def prune(self, change: Tensor, mark: bytes) -> Tensor:
        if self.density == 1:
            return change
        draws, columns = generator(self.seed, mark), change.shape[1]
        half = self.epsilon / 2 if columns > 1 else 0.0
        ramp = torch.linspace(self.density - half, self.density + half, columns, device=change.device)
        for rows in torch.split(change, max(1, BLOCK // max(1, columns))):
            order = rows.abs().argsort(dim=1, stable=True)
            chance = torch.empty_like(rows).scatter_(1, order, ramp.expand_as(rows))
            kept = torch.rand(rows.shape, generator=draws).to(rows.device) < chance
            rows.mul_(kept).div_(chance)
        return change


@dataclass(frozen=True)
class Della(Elected, DellaLinear):
    """The weighted mean of what was not dropped and agrees with the elected sign. majority_sign: as of `ties`."""

    name: ClassVar[str] = "della"

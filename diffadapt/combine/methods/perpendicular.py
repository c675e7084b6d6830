"""`perpendicular`: later adapters give way to earlier ones.

D = w_1 D_1 + sum over i > 1 of w_i (I - U_i U_i') D_i (I - V_i V_i'), U_i and V_i being the column and the row space of
the changes before i: the singular vectors of these side by side (on top of each other) that hold the share `energy` of
their squared singular values, the largest first. `side`: "out" removes what would write to outputs that an earlier
adapter writes to, "in" what would read the inputs that it reads, "both" does both. It is the projection of
Gram and Schmidt, applied to spaces of a layer; as orthogonal adapters have it for training (O-LoRA, arXiv 2310.14152).

The order of the adapters matters: put the one first that has to come out whole. Its weight does not change what the
others lose, unless it is 0, which takes it out. Limits: where an earlier change has full rank, all of the space is its
own, and `energy=1` leaves nothing of the later ones on that layer. Biases and norms are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.combine.methods.several import Several, number, one_of, spectrum
from diffadapt.combine.space import Space


@dataclass(frozen=True)
class Perpendicular(Several):
    """The sum without what lies in the spaces of earlier ones. side: "out", "in" or "both"; energy: see above."""

    name: ClassVar[str] = "perpendicular"

    side: str = "out"
    energy: float = 0.9

    def __post_init__(self) -> None:
        one_of(self.name, "side", self.side, ("out", "in", "both"))
        number(self.name, "energy", self.energy, 0, 1)

    def core(self, space: Space, weights: Sequence[float]) -> Tensor:
        cores = [core.double() for core in space.cores]
        total = weights[0] * cores[0]
        for i, core in enumerate(cores[1:], 1):
            left = core
            if self.side != "in":
                taken = self.taken(torch.cat(cores[:i], 1))
                left = left - taken @ (taken.T @ left)
            if self.side != "out":
                taken = self.taken(torch.cat(cores[:i]).T)
                left = left - (left @ taken) @ taken.T
            total = total + weights[i] * left
        return total.to(space.cores[0].dtype)

    def taken(self, matrix: Tensor) -> Tensor:
        """The left singular vectors (a, k) that hold the share of the energy."""
        u, s, _ = spectrum(matrix)
        if self.energy == 1 or not len(s):
            return u
        held = s.square().cumsum(0)
        return u[:, : int((held < self.energy * held[-1]).sum()) + 1]

"""Model breadcrumbs: leave out the smallest and the very largest numbers (Davari and Belilovsky, arXiv 2312.06795).

D = sum(w_i m_i D_i): of the size numbers of D_i, m_i drops the int(gamma * size) largest and then as many of the
smallest that int(density * size) are left. Where the density leaves too few to drop, fewer of the largest are dropped;
density 1 is the sum. (mergekit's parameters; the paper counts what is dropped below, beta = 1 - density - gamma.)

Limits. Nothing is scaled up for what is dropped, so the effect is weaker than the sum's, and the largest numbers of a
LoRA often carry the concept itself: keep gamma small.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffadapt.combine.methods.elementwise import Elementwise
from diffadapt.combine.methods.pruning import expect_density, expect_share, largest


@dataclass(frozen=True)
class Breadcrumbs(Elementwise):
    """sum(w_i m_i D_i). density: the share that is kept, gamma: the share of the largest that is dropped."""

    name: ClassVar[str] = "breadcrumbs"

    density: float = 0.5
    gamma: float = 0.01

    def __post_init__(self) -> None:
        expect_density(self.name, self.density)
        expect_share(self.name, "gamma", self.gamma)

    def prune(self, change: Tensor, mark: bytes) -> Tensor:
        size = change.numel()
        left = size if self.density == 1 else int(self.density * size)
        top = min(int(self.gamma * size), size - left)
        # Both masks settle ties by place, so that the larger one holds the smaller one.
        kept = largest(change, left + top).logical_xor_(largest(change, top))
        return change.mul_(kept)

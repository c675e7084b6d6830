"""Merging by TIES in a basis that the changes share, where numbers at one place mean the same for all of them.

`knots` (Stoica and others, arXiv 2410.19735): U diag(s) [V_1' ... V_n'] = [D_1 ... D_n]; D = U ties(diag(s) V_i'). The
output side is shared, the inputs stay the layer's own.
`core_space` (Panariello and others, arXiv 2509.17786): with orthonormal bases U of all columns and V of all rows, the
cores M_i = U' D_i V are small and lose nothing; D = U ties(M_i) V'. Its cost is that of the ranks.
`merge="sum"` is the weighted sum in both, exactly: a change of basis does not change a sum. TIES is `ties`' own: the
`density` of every change is kept, a sign elected, and the weighted mean taken of what agrees.

Differences from the papers' code. The core's bases are the singular vectors of the changes side by side and on top of
each other, not those of the LoRAs' B and A, which would depend on how a file splits a scale between the two; changes
that are no LoRAs have a core as well. Limits. TIES makes a mean of what agrees: raise the weights to make up for it.
A basis is unique only where singular values differ. Biases and norms are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.combine.build import dense_delta, pair_delta
from diffadapt.combine.methods.exact import weighted
from diffadapt.combine.methods.pruning import expect_density, expect_majority
from diffadapt.combine.methods.several import Several, one_of, spectrum
from diffadapt.combine.methods.ties import Ties
from diffadapt.combine.part import Part
from diffadapt.combine.space import Space, truncated


@dataclass(frozen=True)
class CoreSpace(Several):
    """TIES on the cores. merge: "ties" or "sum"; density: the share of every core that is kept."""

    name: ClassVar[str] = "core_space"

    merge: str = "ties"
    density: float = 0.5
    majority_sign: str = "total"

    def __post_init__(self) -> None:
        one_of(self.name, "merge", self.merge, ("ties", "sum"))
        expect_density(self.name, self.density)
        expect_majority(self.name, self.majority_sign)

    def merged(self, matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The matrices as one."""
        if self.merge == "sum":
            return weighted(matrices, weights)
        return Ties(self.density, self.majority_sign).joined(matrices, weights).to(matrices[0].dtype)

    def core(self, space: Space, weights: Sequence[float]) -> Tensor:
        left, _, _ = spectrum(torch.cat(space.cores, 1))
        _, _, right = spectrum(torch.cat(space.cores))
        merged = self.merged([left.T @ core.double() @ right.T for core in space.cores], weights)
        return (left @ merged @ right).to(space.cores[0].dtype)


@dataclass(frozen=True)
class Knots(CoreSpace):
    """TIES on the right factors, in the layer's own inputs."""

    name: ClassVar[str] = "knots"

    def among(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        space = Space.of(parts)
        left, _, _ = spectrum(torch.cat(space.cores, 1))
        rights = [left.T.float() @ core for core in space.cores]
        if space.right is not None:
            rights = [right @ space.right.T for right in rights]
        down = self.merged(rights, [part.weight for part in parts])
        up = left.float() if space.left is None else space.left @ left.float()
        if rank is not None:
            # U is orthonormal, so the best approximation of U M is U times that of M.
            found = truncated(down, rank)
            return pair_delta(up @ found.up, found.down, parts), found.lost
        rows, columns = parts[0].flat
        if up.shape[1] * (rows + columns) <= rows * columns:
            return pair_delta(up, down, parts), 0.0
        return dense_delta(up @ down, parts), 0.0

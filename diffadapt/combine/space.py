"""The small space that several changes of one weight live in.

Changes D_i = up_i down_i of rank r_i all lie in the span of Q_u, the orthonormal basis of the stacked ups, and Q_d,
that of the stacked downs: D_i = Q_u C_i Q_d' with cores C_i of at most sum(r) x sum(r). Norms, inner products, singular
values and vectors of the C_i are those of the D_i, so that whatever is built of these alone costs what the ranks cost,
not what the weight does. A change without a pair is its own core.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffadapt.combine.part import Part


class Factors(NamedTuple):
    """up (out, r), down (r, in * kernel), and the relative Frobenius error of their product."""

    up: Tensor
    down: Tensor
    lost: float = 0.0


@dataclass(frozen=True, eq=False)
class Space:
    """cores: one (a, b) matrix for each change. left: Q_u (out, a), right: Q_d (in, b); None where a core is the change
    itself."""

    cores: tuple[Tensor, ...]
    left: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def of(cls, parts: Sequence[Part]) -> Space:
        """The space of the parts, without their weights. Raises CombineError where a base weight is missing."""
        pairs = [part.pair() for part in parts]
        known = [pair for pair in pairs if pair is not None]
        ranks = [up.shape[1] for up, _ in known]
        if len(known) < len(pairs) or sum(ranks) >= min(parts[0].flat):
            return cls(tuple(part.dense() for part in parts))
        left, upper = torch.linalg.qr(torch.cat([up for up, _ in known], 1))
        right, lower = torch.linalg.qr(torch.cat([down for _, down in known]).T)
        ups, downs = torch.split(upper, ranks, 1), torch.split(lower, ranks, 1)
        return cls(tuple(a @ b.T for a, b in zip(ups, downs, strict=True)), left, right)

    @property
    def is_small(self) -> bool:
        """Whether the cores are smaller than the weight."""
        return self.left is not None

    def lifted(self, up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
        """The factors (a, r), (r, b) of a core as factors (out, r), (r, in * kernel) of the change."""
        if self.left is None or self.right is None:
            return up, down
        return self.left @ up, down @ self.right.T

    def factors(self, core: Tensor, rank: int | None = None) -> Factors:
        """The change of a core: its best approximation of a rank, or exact where none is asked for."""
        if rank is None and self.left is not None and self.right is not None:
            return Factors(self.left @ core, self.right.T)
        found = truncated(core, rank if rank is not None else min(core.shape))
        return Factors(*self.lifted(found.up, found.down), found.lost)

    def gram(self) -> Tensor:
        """The inner products of the changes, (n, n) in float64."""
        flat = torch.stack([core.flatten() for core in self.cores]).double()
        return flat @ flat.T


def truncated(matrix: Tensor, rank: int) -> Factors:
    """The best approximation of a matrix of a rank, in the Frobenius norm (Eckart and Young, 1936).

    Both factors carry the root of the singular values, so that neither has numbers too small for half precision.
    """
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root, squares = s[:rank].sqrt(), s.double().square()
    total = float(squares.sum())
    lost = (float(squares[rank:].sum()) / total) ** 0.5 if total else 0.0
    return Factors(u[:, :rank] * root, root[:, None] * vh[:rank], lost)

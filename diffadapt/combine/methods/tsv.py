"""`tsv`: TSV-M (Gargiulo and others, arXiv 2412.00081), singular vectors that do not get in each other's way.

D_i = U_i diag(s_i) V_i', cut to its k largest singular values. All U_i side by side are replaced by the nearest
orthonormal U (Procrustes: P Q' of their P diag(c) Q'), and the V_i likewise: D = U diag(w_1 s_1, w_2 s_2, ...) V'.

k is the paper's min(out, in) / n for n adapters, which leaves most LoRAs whole; `share` cuts each change to that share
of its own rank instead. The result does not depend on the order, and of one adapter it is that adapter.
Difference from the paper: directions that two adapters have exactly in common are shared (two equal adapters give the
sum times a half), where the paper's code would fill up with directions that rounding chooses. Limits: the result is no
linear function of the changes, and a small adapter turns the vectors of a big one as much as the other way round.
Biases and norms are summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.combine.methods.several import Several, number, spectrum
from diffadapt.combine.space import Space


@dataclass(frozen=True)
class TSV(Several):
    """Orthogonalised singular vectors, summed. share: of each change's ranks that are kept; None: the paper's."""

    name: ClassVar[str] = "tsv"

    share: float | None = None

    def __post_init__(self) -> None:
        if self.share is not None:
            number(self.name, "share", self.share, 0, 1)

    def core(self, space: Space, weights: Sequence[float]) -> Tensor:
        small, (rows, columns) = space.cores[0].dtype, space.cores[0].shape
        if space.left is not None and space.right is not None:
            rows, columns = len(space.left), len(space.right)
        most = max(1, min(rows, columns) // len(weights))
        lefts, values, rights = [], [], []
        for core, weight in zip(space.cores, weights, strict=True):
            u, s, vh = spectrum(core)
            k = most if self.share is None else math.ceil(self.share * len(s))
            lefts.append(u[:, :k])
            values.append(weight * s[:k])
            rights.append(vh[:k].T)
        left, right = _orthonormal(torch.cat(lefts, 1)), _orthonormal(torch.cat(rights, 1))
        return (left * torch.cat(values) @ right.T).to(small)


def _orthonormal(vectors: Tensor) -> Tensor:
    """The orthonormal columns nearest to the given ones; where these depend on each other, a projection of such."""
    if not vectors.shape[1]:
        return vectors
    p, _, qh = spectrum(vectors)
    return p @ qh

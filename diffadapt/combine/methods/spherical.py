"""Means on the sphere: the changes D_i of a weight as vectors, their directions u_i = D_i / |D_i| as points on it.

`slerp` (Shoemake, SIGGRAPH 1985), of two: with t = w_2 / (w_1 + w_2) and the angle a between D_1 and D_2,
    D = n (sin((1 - t) a) u_1 + sin(t a) u_2) / sin a,    n = w_1 |D_1| + w_2 |D_2|.
`karcher` (Karcher, 1977), of any number: n = sum(w_i |D_i|) times the direction that has the smallest sum of squared
angles to the u_i, weighted by the w_i. Of two it is `slerp`.
Both are exact linear combinations of the changes: their inner products are all that is needed, and pairs stay pairs.

The norm of the result is n, which is what the weighted sum's would be if all changes pointed the same way; the sum of
two orthogonal changes at 0.5 is shorter, |D| / sqrt(2). Twice the weights give twice the result, so that [0.5, 0.5] is
the usual slerp at t = 0.5, and [1, 0] the first change. Every layer has its own angle.

Limits. Weights below 0 have no place on an arc and are refused, and so are changes that point exactly opposite ways,
between which there is no shortest one. A change that is 0 has no direction and takes no part. Where the directions lie
further apart than half a sphere, Karcher's mean need not be the only one; the one near the weighted sum is found.
Biases and norms are summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.combine.methods.exact import weighted
from diffadapt.combine.methods.several import Several
from diffadapt.combine.space import Space
from diffadapt.errors import CombineError

_OPPOSITE = 1e-6
"""In radians from half a turn. Closer, and the direction of the way is rounding."""

_STEPS, _ENOUGH = 1000, 1e-12


@dataclass(frozen=True)
class Karcher(Several):
    """The weighted spherical mean."""

    name: ClassVar[str] = "karcher"
    signed: ClassVar[bool] = False

    def core(self, space: Space, weights: Sequence[float]) -> Tensor:
        gram = space.gram()
        norms = gram.diagonal().sqrt()
        live = [i for i, norm in enumerate(norms.tolist()) if norm > 0]
        if not live:
            return torch.zeros_like(space.cores[0])
        shares = torch.tensor([weights[i] for i in live], dtype=torch.float64, device=gram.device)
        units = norms[live]
        cosines = gram[live][:, live] / (units[:, None] * units)
        length = float(shares @ units)
        factors = length * self.direction(cosines.clamp(-1, 1), shares / shares.sum()) / units
        return weighted([space.cores[i] for i in live], factors.tolist())

    def direction(self, cosines: Tensor, shares: Tensor) -> Tensor:
        """The mean of unit vectors in coefficients of them, by their cosines (n, n) and shares (n,) of 1."""
        mean = _unit(shares, cosines)
        for _ in range(_STEPS):
            toward = cosines @ mean
            angles = torch.acos(toward.clamp(-1, 1))
            expect_a_way(float(angles.max()))
            # The way from the mean to u_i is f_i (u_i - cos_i mean), of the length of the angle.
            stretch = shares * torch.where(angles > 1e-8, angles / angles.sin().clamp(min=1e-300), 1.0)
            step = stretch - float(stretch @ toward) * mean
            size = float((step @ cosines @ step).clamp(min=0).sqrt())
            if size < _ENOUGH:
                break
            mean = _unit(math.cos(size) * mean + math.sin(size) / size * step, cosines)
        return mean


@dataclass(frozen=True)
class Slerp(Karcher):
    """Spherical interpolation of two."""

    name: ClassVar[str] = "slerp"
    takes: ClassVar[int | None] = 2

    def direction(self, cosines: Tensor, shares: Tensor) -> Tensor:
        if len(shares) == 1:
            return torch.ones_like(shares)
        angle = math.acos(float(cosines[0, 1]))
        expect_a_way(angle)
        # Below, sin(t a) / sin a is t to float64's precision, or 0 / 0.
        factors = torch.sin(shares * angle) / math.sin(angle) if angle > 1e-6 else shares
        return _unit(factors, cosines)


def _unit(coefficients: Tensor, cosines: Tensor) -> Tensor:
    """Coefficients of the unit vectors, scaled so that they make one of length 1."""
    square = float(coefficients @ cosines @ coefficients)
    if square < _OPPOSITE**2:
        expect_a_way(math.pi)
    return coefficients / math.sqrt(square)


def expect_a_way(angle: float) -> None:
    """Raise CombineError where vectors point opposite ways."""
    if angle > math.pi - _OPPOSITE:
        raise CombineError(
            "the changes point exactly opposite ways, between which there is no shortest arc; use method='sum'."
        )

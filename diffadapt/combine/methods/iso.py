"""`iso`: Iso-C (Marczak and others, arXiv 2502.04959), the sum with all its singular values made equal.

sum(w_i D_i) = U diag(s) V', D = m U V' with m = mean(s): no direction of the sum drowns the others. `keep="energy"`
takes the root of the mean square instead, which keeps the Frobenius norm of the sum where the mean keeps the sum of s.

Difference from the paper: the mean, and U V', are over the directions that the sum has, not over all that the weight
has. A LoRA's other directions are rounding, and there would be many of them. Limits: small, perhaps meaningless
directions are raised as well; a LoRA padded with nearly empty ranks suffers. A single adapter is flattened too. Biases
and norms are summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffadapt.combine.methods.base import InSpace
from diffadapt.combine.methods.exact import weighted
from diffadapt.combine.methods.several import one_of, spectrum
from diffadapt.combine.space import Space


@dataclass(frozen=True)
class Iso(InSpace):
    """The sum with equal singular values. keep: what stays the sum's, "mean" (of them) or "energy"."""

    name: ClassVar[str] = "iso"
    keeps_one: ClassVar[bool] = False

    keep: str = "mean"

    def __post_init__(self) -> None:
        one_of(self.name, "keep", self.keep, ("mean", "energy"))

    def core(self, space: Space, weights: Sequence[float]) -> Tensor:
        total = weighted(space.cores, weights)
        u, s, vh = spectrum(total)
        if not len(s):
            return total
        level = s.mean() if self.keep == "mean" else s.square().mean().sqrt()
        return (level * u @ vh).to(total.dtype)

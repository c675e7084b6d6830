"""OSF: the smallest singular parts of the base weight are replaced by trained ones.

`osf_svd_params.U_low` (out, n), `.S_low` (n,), `.V_low` (n, in) stand for the n smallest of the min(out, in) singular
parts of W: delta W = U_low diag(S_low) V_low - (the n smallest parts of W). Of rank 2 n; it needs the base weight.
Sources: OSF, arXiv 2504.07097; PEFT `tuners/osf`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.factored import require_linear
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_ROLES = ("osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low")


@dataclass(frozen=True, eq=False)
class OSF(Delta):
    """outer (out, n), values (n,), inner (n, in)."""

    algorithm: ClassVar[str] = "osf"

    outer: Tensor
    values: Tensor
    inner: Tensor

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role in group for role in _ROLES):
            return None
        outer, values, inner = (group.take(role) for role in _ROLES)
        if outer.ndim != 2 or inner.ndim != 2 or values.shape != outer.shape[1:] or len(inner) != len(values):
            shapes = [tuple(t.shape) for t in (outer, values, inner)]
            raise AlgorithmError(f"{group.name}: OSF's U, S, V {shapes} do not fit; expected (out, n), (n,), (n, in).")
        return cls(outer, values, inner)

    @property
    def rank(self) -> int:
        return len(self.values)

    def trained(self) -> LowRank:
        """What is put in."""
        return LowRank(self.inner, f32(self.outer) * f32(self.values))

    def removed(self, weight: Tensor) -> LowRank:
        """The n smallest parts of the weight, as float32 factors."""
        # PEFT's call, in its precision: what it took out has the rounding of this SVD, and so must what is taken here.
        u, s, v = torch.linalg.svd(f32(weight), full_matrices=False)
        first = len(s) - self.rank
        return LowRank(v[first:], u[:, first:] * s[first:], -1.0)

    def weight_delta(self, weight: Tensor) -> Tensor:
        shape = tuple(weight.shape)
        return self.trained().dense(shape, weight.device) + self.removed(weight).dense(shape, weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        return self.trained(), self.removed(weight())

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        expect_shape(self.algorithm, (self.outer.shape[0], self.inner.shape[1]), layer)
        if self.rank > min(layer.shape):
            raise AlgorithmError(f"osf: {self.rank} singular parts, more than a Linear of {layer.shape} has.")

    def peft_fields(self, module: str) -> Fields | None:
        """PEFT counts the parts that stay."""
        return {"peft_type": "OSF", "effective_rank": min(len(self.outer), self.inner.shape[1]) - self.rank}

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(_ROLES, (self.outer, self.values, self.inner), strict=True))

"""HRA: a product of Householder reflections of the inputs, flat(W)' = flat(W) prod_i (I - 2 u_i u_i^T).

Tensors: `hra_u` (in * kernel, r), a reflection vector per column, of any length. Config `apply_GS`: the vectors are
made orthonormal first (Gram-Schmidt), and the product is I - 2 U U^T.
The product is I - U T U^T with an upper triangular T of which T^-1 + T^-T = U^T U (the compact WY form), so the
change -flat(W) U T U^T is of rank r. Sources: HRA, arXiv 2405.17484; PEFT `tuners/hra`; Schreiber and Van Loan 1989.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.cayley import wide
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class HRA(Delta):
    """Reflections of the inputs. orthonormal: `apply_GS`."""

    algorithm: ClassVar[str] = "hra"

    vectors: Tensor
    orthonormal: bool = False

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "hra_u" not in group:
            return None
        vectors = group.take("hra_u")
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise AlgorithmError(f"{group.name}: hra_u {tuple(vectors.shape)}; expected (in * kernel, r).")
        if bool((vectors.norm(dim=0) == 0).any()):
            raise AlgorithmError(f"{group.name}: hra_u holds a zero vector, which defines no reflection.")
        return cls(vectors, bool(context.config.get("apply_GS")))

    @property
    def rank(self) -> int:
        return int(self.vectors.shape[1])

    def _factors(self, weight: Tensor) -> LowRank:
        """The change as a pair. down: (r, in, *kernel); up: (out, r), from the base weight."""
        u = wide(self.vectors)
        if self.orthonormal:
            # QR is Gram-Schmidt up to signs, which cancel in U U^T.
            u = torch.linalg.qr(u).Q
            turned = 2 * u
        else:
            u = u / u.norm(dim=0)
            gram = u.T @ u
            inverse = gram.triu(1) + torch.eye(self.rank, dtype=u.dtype, device=u.device) / 2
            turned = torch.linalg.solve_triangular(inverse, u, upper=True, left=False)
        up = f32(weight).flatten(1) @ f32(-turned, weight)
        return LowRank(f32(u, weight).T.reshape(self.rank, *weight.shape[1:]), up)

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self._factors(weight).dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        return (self._factors(weight()),)

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv") or layer.groups != 1:
            raise AlgorithmError(f"hra: cannot act on a {layer.kind} layer of {layer.groups} groups.")
        if math.prod(layer.shape[1:]) != self.vectors.shape[0]:
            raise AlgorithmError(
                f"hra: hra_u {tuple(self.vectors.shape)} does not fit a {layer.kind} of shape {layer.shape}. "
                "The adapter is for another model."
            )

    def tensors(self) -> dict[str, Tensor]:
        return {"hra_u": self.vectors}

    def rows(self, start: int, stop: int) -> Delta:
        return self

"""HRA: a product of Householder reflections of the inputs, flat(W)' = flat(W) prod_i (I - 2 u_i u_i^T).

Tensors: `hra_u` (in * kernel, r), a reflection vector per column, of any length. Config `apply_GS`: the vectors are
made orthonormal first (Gram-Schmidt), and the product is I - 2 U U^T.
The product is I - U T U^T with an upper triangular T of which T^-1 + T^-T = U^T U (the compact WY form), so the
change -flat(W) U T U^T is of rank r. Sources: HRA, arXiv 2405.17484; PEFT `tuners/hra`; Schreiber and Van Loan 1989.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.cayley import wide
from diffadapt.algorithms.forms import Form, InputChange, LowRank, Mix
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class HRA(Delta):
    """Reflections of the inputs. orthonormal: `apply_GS`."""

    algorithm: ClassVar[str] = "hra"
    options: ClassVar[Mapping[str, Any]] = {"orthonormal": False}

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

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Every vector twice, so that the reflections undo each other. As PEFT begins; the rank must be even.

        orthonormal: PEFT's `apply_GS`, with which no beginning is the identity.
        """
        start.require("hra", ungrouped=True)
        start.require_rank("hra")
        if start.rank % 2:
            raise AlgorithmError(f"hra: rank {start.rank} is odd; only an even one can begin as no change at all.")
        half = start.kaiming(start.columns, start.rank // 2)
        return cls(torch.repeat_interleave(half, 2, dim=1), start.option("orthonormal", False))

    @property
    def rank(self) -> int:
        return int(self.vectors.shape[1])

    def _mixing(self) -> tuple[Tensor, Tensor]:
        """U and U T (in * kernel, r) in float64, of the product I - U T U^T."""
        u = wide(self.vectors)
        if self.orthonormal:
            # QR is Gram-Schmidt up to signs, which cancel in U U^T.
            u = torch.linalg.qr(u).Q
            return u, 2 * u
        u = u / u.norm(dim=0)
        gram = u.T @ u
        inverse = gram.triu(1) + torch.eye(self.rank, dtype=u.dtype, device=u.device) / 2
        return u, torch.linalg.solve_triangular(inverse, u, upper=True, left=False)

    def _factors(self, weight: Tensor) -> LowRank:
        """The change as a pair. down: (r, in, *kernel); up: (out, r), from the base weight."""
        u, turned = self._mixing()
        up = f32(weight).flatten(1) @ f32(-turned, weight)
        return LowRank(f32(u, weight).T.reshape(self.rank, *weight.shape[1:]), up)

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self._factors(weight).dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        return (self._factors(weight()),)

    def training_forms(
        self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]
    ) -> tuple[Form, ...]:
        """Reflected inputs: the vectors change at every step, and W (U T) would be made anew each time."""
        if math.prod(layer.shape[2:]) > 1:
            return self.forms(layer, weight, bias)
        u, turned = self._mixing()
        # flat(W) (I - U T U^T) x: the module sees x - U T U^T x.
        return (InputChange(Mix(u.float().T, -turned.float())),)

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv") or layer.groups != 1:
            raise AlgorithmError(f"hra: cannot act on a {layer.kind} layer of {layer.groups} groups.")
        if math.prod(layer.shape[1:]) != self.vectors.shape[0]:
            raise AlgorithmError(
                f"hra: hra_u {tuple(self.vectors.shape)} does not fit a {layer.kind} of shape {layer.shape}. "
                "The adapter is for another model."
            )

    def peft_fields(self, module: str) -> Fields | None:
        return {"peft_type": "HRA", "r": self.rank, "apply_GS": self.orthonormal}

    def tensors(self) -> dict[str, Tensor]:
        return {"hra_u": self.vectors}

    def rows(self, start: int, stop: int) -> Delta:
        return self

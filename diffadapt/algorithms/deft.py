"""DEFT and PaRa: a part of the weight's output space is taken out, and something trained put in its place.

`deft_P` (out, r), `deft_R` (r, in). delta W = Q (c R - G^T W), with Q = P and G = relu(P), or Q = G = the Q of P's QR
decomposition, by the config's `decomposition_method`; c = alpha / r, or 1 without an alpha. PaRa (`para`): no R.
Of rank r, but it needs the base weight. Source: PEFT `tuners/deft`, which names both methods' papers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.cayley import wide
from diffadapt.algorithms.factored import number, require_linear
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class DEFT(Delta):
    """direction (out, r); injection (r, in), None for PaRa. method: "relu" or "qr"; scale: c."""

    algorithm: ClassVar[str] = "deft"

    direction: Tensor
    injection: Tensor | None
    method: str
    scale: float

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "deft_P" not in group and "deft_R" not in group:
            return None
        direction, config = group.take("deft_P"), context.config
        injection = None if config.get("para") and "deft_R" not in group else group.take("deft_R")
        method = config.get("decomposition_method")
        if method not in ("relu", "qr"):
            raise AlgorithmError(
                f"{group.name}: DEFT needs the config's decomposition_method, 'relu' or 'qr', not {method!r}."
            )
        if (
            direction.ndim != 2
            or direction.shape[1] > len(direction)
            or (injection is not None and len(injection) != direction.shape[1])
        ):
            raise AlgorithmError(f"{group.name}: deft_P {tuple(direction.shape)} and deft_R do not fit together.")
        alpha = context.alpha if context.alpha is not None else number(group, config, "alpha", 0.0)
        return cls(direction, injection, method, alpha / direction.shape[1] if alpha else 1.0)

    @property
    def rank(self) -> int:
        return int(self.direction.shape[1])

    def pair(self, weight: Tensor) -> LowRank:
        """The change as float32 factors of the weight (out, in)."""
        outer = wide(self.direction.to(weight.device))
        inner = outer.relu()
        if self.method == "qr":
            # A column's sign is the library's choice, and R was trained beside PEFT's: the same float32 call.
            outer = inner = wide(torch.linalg.qr(f32(self.direction, weight)).Q)
        down = -(inner.T @ wide(weight))
        if self.injection is not None:
            down = down + wide(self.injection.to(weight.device)) * self.scale
        return LowRank(f32(down, weight), f32(outer, weight))

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.pair(weight).dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        return (self.pair(weight()),)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        inputs = layer.shape[1] if self.injection is None else self.injection.shape[1]
        if (self.direction.shape[0], inputs) != layer.shape:
            raise AlgorithmError(
                f"deft: deft_P {tuple(self.direction.shape)} does not fit a Linear of {layer.shape}. "
                "The adapter is for another model."
            )

    def peft_fields(self, module: str) -> Fields | None:
        return {
            "peft_type": "DEFT", "r": self.rank, "decomposition_method": self.method, "para": self.injection is None,
            "alpha": None if self.scale == 1.0 else self.scale * self.rank,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The tensors; the method, alpha and `para` are the config's."""
        return {"deft_P": self.direction} | ({} if self.injection is None else {"deft_R": self.injection})

"""Differences of normalisation layers: `w_norm` and `b_norm` (dim,), added to weight and bias.

The same maths as a full difference on LayerNorm, GroupNorm or RMSNorm; a module without bias gets one. Live: the
normalisation with the weight's change, and the bias' change. Source: LyCORIS `modules/norms.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from diffadapt.algorithms.base import Context, TensorGroup
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class Norm(Full):
    """diff, diff_b: (dim,)."""

    algorithm: ClassVar[str] = "norm"

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        weight, bias = group.take_optional("w_norm"), group.take_optional("b_norm")
        return None if weight is None and bias is None else cls(weight, bias)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        start.require("norm", ("layer_norm", "group_norm", "rms_norm"))
        return super().fresh(start)

    def check(self, layer: Layer) -> None:
        if not layer.kind.endswith("_norm"):
            raise AlgorithmError(f"norm: cannot act on a {layer.kind} layer; expected a normalisation.")
        super().check(layer)

    def tensors(self) -> dict[str, Tensor]:
        named = {"w_norm": self.diff, "b_norm": self.diff_b}
        return {role: t for role, t in named.items() if t is not None}

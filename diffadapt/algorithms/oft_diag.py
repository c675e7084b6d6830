"""LyCORIS 2.0's OFT, which saved the rotation itself: W'_j = D_j^T W_j for k consecutive groups of n output rows.

Tensors: `oft_diag` (k, n, n). A constraint and a rescale are inside already, so D need not be orthogonal.
Source: LyCORIS 2.0 `diag_oft.py`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.cayley import wide
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.rotation import OutputRotation, Stage, Stages, square_blocks
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class OFTDiag(OutputRotation):
    """Block matrices on the outputs, as stored."""

    algorithm: ClassVar[str] = "oft_diag"
    orthogonal: ClassVar[bool] = False

    diag: Tensor

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "oft_diag" not in group:
            return None
        group.take_optional("alpha")
        return cls(square_blocks(group.name, "oft_diag", group.take("oft_diag"), 3))

    def stages(self, channels: int) -> Stages:
        d = wide(self.diag)
        excess = d.transpose(1, 2) - torch.eye(d.shape[-1], dtype=d.dtype, device=d.device)
        return (Stage((excess.float(),)).times(self.stage),)

    def check(self, layer: Layer) -> None:
        self.require(layer, ("linear", "conv"))
        if layer.shape[0] != self.diag.shape[0] * self.diag.shape[1]:
            raise self.misfit(layer, layer.shape[0], "outputs")

    def named(self) -> dict[str, Tensor]:
        return {"oft_diag": self.diag}

    def turned(self, multiplier: float) -> Self:
        raise AlgorithmError("oft_diag: stores the rotation, not its generator; use the rule 'linear' or 'stage'.")

    def rows(self, start: int, stop: int) -> Delta:
        size = self.diag.shape[1]
        self.border(start, stop, size, self.diag.shape[0] * size)
        return dataclasses.replace(self, diag=self.diag[start // size : stop // size])

"""PEFT BOFT: a butterfly of block rotations of the inputs and a scale per output.

Tensors: `boft_R` (M, k, b, b), `boft_s` (out, 1) for Linear, (1, out) for Conv2d; k * b = in * kernel.
Q = (X - X^T) / 2, R = (I - Q)(I + Q)^-1, B_i = P_i blockdiag(R_i) P_i^T, B = B_(M-1) ... B_0,
flat(W)' = boft_s * (flat(W) B^T). P_i (not in the file): within every segment of 2^i * b positions the half blocks
of b / 2, even ones first, then odd: (P_i x)[a] = x[pi_i(a)]. Sources: BOFT, arXiv 2311.06243; PEFT `tuners/boft`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.cayley import cayley, skew
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.rotation import InputRotation, Stage, Stages, square_blocks
from diffadapt.errors import AlgorithmError


def even_then_odd(channels: int, count: int, half: int, device: torch.device) -> Tensor:
    """pi: in every segment of 2 * count half blocks of `half` channels, the even half blocks, then the odd."""
    return torch.arange(channels, device=device).view(-1, count, 2, half).transpose(1, 2).flatten()


@dataclass(frozen=True, eq=False)
class PeftBOFT(InputRotation):
    """Butterfly stages on the inputs, by the generators' blocks, and a scale of the outputs."""

    algorithm: ClassVar[str] = "boft_peft"

    blocks: Tensor
    scale: Tensor

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "boft_R" not in group:
            return None
        blocks = square_blocks(group.name, "boft_R", group.take("boft_R"), 4)
        count, k, size, _ = blocks.shape
        if count > 1 and (size % 2 or k % 2 ** (count - 1)):
            raise AlgorithmError(
                f"{group.name}: boft_R {tuple(blocks.shape)} is no butterfly; expected (M, k, b, b) with even b and k "
                "a multiple of 2^(M-1)."
            )
        return cls(blocks, group.take("boft_s"))

    @property
    def row_scale(self) -> Tensor:
        return self.scale.flatten()

    def stages(self, channels: int, conv: bool) -> Stages:
        size = self.blocks.shape[2]
        stages = []
        for i, excess in enumerate(cayley(-skew(self.blocks) / 2)):
            # The blocks see P_i^T x, so they gather by the inverse of pi_i. Stage 0 keeps the order.
            order = even_then_odd(channels, 2**i, size // 2, excess.device).argsort() if i else None
            stages.append(Stage((excess,), order).times(self.stage))
        return tuple(stages)

    def check(self, layer: Layer) -> None:
        self.require(layer, ("linear", "conv"))
        self.ungrouped(layer)
        channels = math.prod(layer.shape[1:])
        if channels != self.blocks.shape[1] * self.blocks.shape[2] or self.scale.numel() != layer.shape[0]:
            raise self.misfit(layer, channels, "inputs")

    def named(self) -> dict[str, Tensor]:
        return {"boft_R": self.blocks, "boft_s": self.scale}

    def turned(self, multiplier: float) -> Self:
        return dataclasses.replace(self, blocks=self.blocks * multiplier)

    def rows(self, start: int, stop: int) -> Delta:
        part = self.scale[start:stop] if self.scale.shape[0] > 1 else self.scale[:, start:stop]
        return dataclasses.replace(self, scale=part)

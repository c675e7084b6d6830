"""PEFT BOFT: a butterfly of block rotations of the inputs and a scale per output.

Tensors: `boft_R` (M, k, b, b), `boft_s` (out, 1) for Linear, (1, out) for Conv2d; k * b = in * kernel.
Q = (X - X^T) / 2, R = (I - Q)(I + Q)^-1, B_i = P_i blockdiag(R_i) P_i^T, B = B_(M-1) ... B_0,
flat(W)' = boft_s * (flat(W) B^T). P_i (not in the file): within every segment of 2^i * b positions the half blocks
of b / 2, even ones first, then odd: (P_i x)[a] = x[pi_i(a)]. Sources: BOFT, arXiv 2311.06243; PEFT `tuners/boft`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.cayley import cayley, skew
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.rotation import InputRotation, Stage, Stages, square_blocks
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


def even_then_odd(channels: int, count: int, half: int, device: torch.device) -> Tensor:
    """pi: in every segment of 2 * count half blocks of `half` channels, the even half blocks, then the odd."""
    return torch.arange(channels, device=device).view(-1, count, 2, half).transpose(1, 2).flatten()


@dataclass(frozen=True, eq=False)
class PeftBOFT(InputRotation):
    """Butterfly stages on the inputs, by the generators' blocks, and a scale of the outputs.

    counted: whether the config asked for a number of blocks and not for their size.
    """

    algorithm: ClassVar[str] = "boft_peft"
    options: ClassVar[Mapping[str, Any]] = {"stages": 1}

    blocks: Tensor
    scale: Tensor
    counted: bool = field(default=False, compare=False)

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
        counted = bool(context.config.get("boft_block_num"))
        return cls(blocks, group.take("boft_s"), counted)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Zero generators and scales of one: no change. rank: the size b of a block, which must divide the inputs;
        stages: M of the butterfly (PEFT's `boft_n_butterfly_factor`), of which M - 1 double the span."""
        start.require("boft_peft", ungrouped=True)
        size, stages = start.rank, start.option("stages", 1)
        count = start.columns // max(1, size)
        fits = size >= 2 and start.columns % size == 0
        if not fits or stages < 1 or (stages > 1 and (size % 2 or count % 2 ** (stages - 1))):
            raise AlgorithmError(
                f"boft_peft: {stages} stages of blocks of {size} do not fit {start.columns} inputs; expected an even "
                "rank that divides them into a multiple of 2^(stages - 1) blocks."
            )
        scale = torch.ones(1, start.rows) if start.layer.kind == "conv" else torch.ones(start.rows, 1)
        return cls(torch.zeros(stages, count, size, size), scale)

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

    def peft_fields(self, module: str) -> Fields | None:
        """None for a rotation scaled by its stage."""
        if self.stage != 1.0:
            return None
        factor, count, size, _ = self.blocks.shape
        sizes = {"boft_block_size": 0, "boft_block_num": int(count)} if self.counted else {"boft_block_size": int(size)}
        return {"peft_type": "BOFT", "boft_block_num": 0, **sizes, "boft_n_butterfly_factor": int(factor)}

    def named(self) -> dict[str, Tensor]:
        return {"boft_R": self.blocks, "boft_s": self.scale}

    def turned(self, multiplier: float) -> Self:
        return dataclasses.replace(self, blocks=self.blocks * multiplier)

    def rows(self, start: int, stop: int) -> Delta:
        part = self.scale[start:stop] if self.scale.shape[0] > 1 else self.scale[:, start:stop]
        return dataclasses.replace(self, scale=part)

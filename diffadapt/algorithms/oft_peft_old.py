"""The two generations of PEFT's OFT before 0.16, told apart by `oft_s`.

PEFT <= 0.13: `oft_r` (k, q, q), q = ceil(out / k): W'^T = W^T M, M = blockdiag(R) cut to (out, out); rotates outputs.
PEFT 0.14-0.15: `oft_r` (k, b, b) and `oft_s` (out, 1): flat(W)' = oft_s * (flat(W) M^T), k * b = in * kernel.
Both: Q = (X - X^T) / 2, R = (I - Q)(I + Q)^-1; one block: shared by all (`block_share`); config `coft` with `eps`
shrinks each X to the norm eps * ceil(out / k)^2 / sqrt(stored blocks). With a kernel, the truth of 0.14-0.15 is the
merged weight, as its training forward folds wrongly. Source: PEFT `tuners/oft/layer.py` of those versions.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.cayley import cayley, project, skew
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.rotation import InputRotation, OutputRotation, Stage, Stages, square_blocks
from diffadapt.errors import AlgorithmError


def _coft(context: Context) -> float | None:
    return float(context.config.get("eps", 6e-5)) if context.config.get("coft") else None


def _excess(blocks: Tensor, radius: float | None) -> Tensor:
    """R - I = C-(Q) - I per block."""
    return cayley(-skew(blocks if radius is None else project(blocks, radius)) / 2)


@dataclass(frozen=True, eq=False)
class OldOutputOFT(OutputRotation):
    """PEFT <= 0.13: a block rotation of the outputs. eps: of `coft`, None without."""

    algorithm: ClassVar[str] = "oft_peft"

    blocks: Tensor
    eps: float | None = None

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "oft_r" not in group or "oft_s" in group:
            return None
        return cls(square_blocks(group.name, "oft_r", group.take("oft_r"), 3), _coft(context))

    def stages(self, channels: int) -> Stages:
        size = self.blocks.shape[1]
        radius = None if self.eps is None else self.eps * size**2
        excess = _excess(self.blocks, radius).transpose(1, 2)
        whole, rest = divmod(channels, size)
        excess = excess.expand(whole + bool(rest), -1, -1) if len(excess) == 1 else excess
        parts = (excess[:whole],) if whole else ()
        # Where k does not divide out, PEFT cuts M: the last block loses rows and columns (and is no rotation).
        cut = (excess[whole : whole + 1, :rest, :rest],) if rest else ()
        return (Stage(parts + cut).times(self.stage),)

    def check(self, layer: Layer) -> None:
        self.require(layer, ("linear", "conv"))
        k, size, _ = self.blocks.shape
        channels = layer.shape[0]
        if size > channels or (k > 1 and math.ceil(channels / k) != size):
            raise self.misfit(layer, channels, "outputs")

    def named(self) -> dict[str, Tensor]:
        return {"oft_r": self.blocks}

    def turned(self, multiplier: float) -> Self:
        blocks = self.blocks
        if self.eps is not None:
            blocks = project(blocks, self.eps * blocks.shape[1] ** 2).float()
        return dataclasses.replace(self, blocks=blocks * multiplier, eps=None)

    def rows(self, start: int, stop: int) -> Delta:
        size = self.blocks.shape[1]
        whole = self if self.eps is None else self.turned(1.0)
        # Only whole blocks: where the last one is cut, the end of the rows is not known here.
        self.border(start, stop, size, -1)
        if len(self.blocks) == 1:
            return whole
        return dataclasses.replace(whole, blocks=whole.blocks[start // size : stop // size])


@dataclass(frozen=True, eq=False)
class OldInputOFT(InputRotation):
    """PEFT 0.14-0.15: a block rotation of the inputs and a scale per output. eps: of `coft`, None without."""

    algorithm: ClassVar[str] = "oft_peft"

    blocks: Tensor
    scale: Tensor
    eps: float | None = None

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "oft_s" not in group:
            return None
        blocks = square_blocks(group.name, "oft_r", group.take("oft_r"), 3)
        return cls(blocks, group.take("oft_s"), _coft(context))

    @property
    def row_scale(self) -> Tensor:
        return self.scale.flatten()

    def _radius(self, channels: int) -> float | None:
        # PEFT took the radius from the outputs, though the blocks run over the inputs.
        count = channels // self.blocks.shape[1]
        return None if self.eps is None else self.eps * math.ceil(self.scale.numel() / count) ** 2

    def stages(self, channels: int, conv: bool) -> Stages:
        excess = _excess(self.blocks, self._radius(channels))
        return (Stage((excess.expand(channels // self.blocks.shape[1], -1, -1),)).times(self.stage),)

    def check(self, layer: Layer) -> None:
        self.require(layer, ("linear", "conv"))
        self.ungrouped(layer)
        channels = math.prod(layer.shape[1:])
        k, size, _ = self.blocks.shape
        if channels % size or k not in (1, channels // size) or self.scale.numel() != layer.shape[0]:
            raise self.misfit(layer, channels, "inputs")

    def named(self) -> dict[str, Tensor]:
        return {"oft_r": self.blocks, "oft_s": self.scale}

    def turned(self, multiplier: float) -> Self:
        if self.eps is not None:
            raise AlgorithmError("oft_peft: 'geodesic' is not defined for PEFT 0.14's coft; use 'linear' or 'stage'.")
        return dataclasses.replace(self, blocks=self.blocks * multiplier)

    def rows(self, start: int, stop: int) -> Delta:
        if self.eps is not None:
            raise AlgorithmError("oft_peft: coft's radius depends on all outputs, so the rows cannot be separated.")
        return dataclasses.replace(self, scale=self.scale[start:stop])

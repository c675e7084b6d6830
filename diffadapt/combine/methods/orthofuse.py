"""`orthofuse`: block rotations blended as rotations; the result is a rotation again.

OFT and BOFT multiply the weight by a product of block rotations. Block by block and stage by stage,
    R = exp(sum(w_i log R_i)),    c = prod(c_i ^ w_i)
with log the skew matrix that a rotation's angles are in, and c the scales of the outputs where a file has them. A
single adapter at weight w turns by w times its angles; R and its inverse at 0.5 each cancel; weight 1 of one gives
itself. The base weights are not needed. `sum` adds the changes, and so leaves the rotations: its result stretches.
Sources: the idea of merging along geodesics of block rotations, OrthoFuse (Aliev and others, arXiv 2604.05183), and of
merging in the Lie algebra, Orthogonal Model Merging (arXiv 2602.05943). It is neither paper's method in full: the first
blends only two, along the geodesic from one to the other, and sharpens the spectrum afterwards.

A result for outputs is written as OFT (`oft_blocks`) or BOFT, in Kohya's own form where all parts are Kohya's; for
inputs as PEFT's OFT with the exact Cayley transform, or as its BOFT where there are stages or scales. All these make a
rotation from a skew matrix, R = (I + Q)(I - Q)^-1, which reaches every rotation but half turns.

Limits. All parts must have the same blocks. Rotations that do not commute are blended around the identity, which no
order matters to, and which is a mean only while the angles are small. Blocks that are further than `tolerance` from a
rotation are refused: PEFT's Neumann series is one only while it turns little; a `tolerance` of 0.1 takes the rotation
nearby. What is no block rotation (LoRA, DoRA, Householder reflections, ...) is refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from diffadapt.algorithms.base import Delta
from diffadapt.combine.methods.base import Method
from diffadapt.combine.methods.several import number
from diffadapt.combine.methods.turns import Turns, tangent, to_generator
from diffadapt.combine.part import Part
from diffadapt.errors import CombineError


@dataclass(frozen=True)
class OrthoFuse(Method):
    """The blend in the Lie algebra. tolerance: how far from a rotation a part's blocks may be, in Frobenius norm."""

    name: ClassVar[str] = "orthofuse"
    needs_shape: ClassVar[bool] = False

    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        number(self.name, "tolerance", self.tolerance, 0)

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        if rank is not None:
            raise CombineError("orthofuse: a rotation has no rank; leave `rank` out, or use another method.")
        turns = [Turns.of(part) for part in parts]
        first = turns[0]
        for part, turn in zip(parts[1:], turns[1:], strict=True):
            if not turn.fits(first):
                raise CombineError(
                    f"orthofuse: the {part.delta.algorithm} of {part.owner} has {turn.said}, that of {parts[0].owner} "
                    f"has {first.said}; expected the same blocks."
                )
        logs = [
            tuple(tangent(block, self.tolerance, part) for block in turn.blocks)
            for part, turn in zip(parts, turns, strict=True)
        ]
        total = [
            sum((part.weight * log for part, log in zip(parts, column, strict=True)), torch.zeros_like(column[0]))
            for column in zip(*logs, strict=True)
        ]
        scales = [(part.weight, turn.scale) for part, turn in zip(parts, turns, strict=True) if turn.scale is not None]
        scale = None
        if scales:
            scale = torch.stack([weight * each.double().log() for weight, each in scales]).sum(0).exp().float()
        return first.delta([to_generator(log) for log in total], scale, parts), 0.0

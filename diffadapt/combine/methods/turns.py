"""The rotations inside a delta, in one form whatever wrote them, and the way to their logarithms and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.boft import BOFT
from diffadapt.algorithms.boft_peft import PeftBOFT
from diffadapt.algorithms.cayley import pack, wide
from diffadapt.algorithms.oft import OFT
from diffadapt.algorithms.oft_diag import OFTDiag
from diffadapt.algorithms.oft_flux import SplitOFT
from diffadapt.algorithms.oft_peft import PackedOFT
from diffadapt.algorithms.oft_peft_old import OldInputOFT, OldOutputOFT
from diffadapt.algorithms.rotation import OutputRotation, Stages
from diffadapt.combine.part import Part
from diffadapt.errors import CombineError

_KNOWN = (OFT, SplitOFT, OFTDiag, BOFT, OldOutputOFT, PackedOFT, PeftBOFT, OldInputOFT)

_STEEPEST = 1e4
"""Of a generator's eigenvalues, tan(angle / 2). Beyond, a number has no room in half precision; it is within 2e-4 of a
half turn, which no generator makes."""


@dataclass(frozen=True, eq=False)
class Turns:
    """blocks: the block rotations less the identity, (k, n, n), by stage and by run within the stage. stages: where
    they stand. scale: of the outputs, (out,), or None."""

    delta_type: type[Delta]
    stages: Stages
    blocks: tuple[Tensor, ...]
    scale: Tensor | None
    outputs: bool
    embedding: bool = False

    @classmethod
    def of(cls, part: Part) -> Turns:
        """Those of a part. Raises CombineError where it is no block rotation."""
        delta, owner = part.delta, part.owner
        if not isinstance(delta, _KNOWN):
            raise CombineError(
                f"orthofuse: the {delta.algorithm} of {owner} is no block rotation; expected OFT or BOFT."
            )
        if isinstance(delta, OFT) and delta.scales_inputs:
            raise CombineError(f"orthofuse: the oft of {owner} scales inputs (LyCORIS 2.1), so it is no rotation.")
        if isinstance(delta, PackedOFT) and delta.onetrainer and not part.shape:
            raise CombineError(f"orthofuse: whether the OFT of {owner} is on a convolution is not known; give base=...")
        stages = _stages(delta, part.shape)
        scale = delta.row_scale
        if scale is not None and not bool((scale > 0).all()):
            raise CombineError(f"orthofuse: the {delta.algorithm} of {owner} has scales that are not above 0.")
        blocks = tuple(block for stage in stages for block in stage.parts)
        outputs = isinstance(delta, OutputRotation)
        return cls(type(delta), stages, blocks, scale, outputs, isinstance(delta, PackedOFT) and delta.embedding)

    @property
    def said(self) -> str:
        """The structure in words."""
        shapes = ", ".join("x".join(map(str, block.shape)) for block in self.blocks)
        return f"blocks of {shapes} on the {'outputs' if self.outputs else 'inputs'}"

    def fits(self, other: Turns) -> bool:
        """Whether both turn the same blocks of the same channels."""
        same = (self.outputs, self.embedding, len(self.stages)) == (other.outputs, other.embedding, len(other.stages))
        if not same or [block.shape for block in self.blocks] != [block.shape for block in other.blocks]:
            return False
        orders = [(a.order, b.order) for a, b in zip(self.stages, other.stages, strict=True)]
        return all((a is b) if a is None or b is None else torch.equal(a.cpu(), b.cpu()) for a, b in orders)

    def delta(self, generators: Sequence[Tensor], scale: Tensor | None, parts: Sequence[Part]) -> Delta:
        """A delta of this structure whose blocks are the Cayley transforms of generators."""
        halves = [q.float() / 2 for q in generators]
        if not self.outputs:
            if scale is None and len(halves) == 1:
                sign = 1 if self.embedding else -1
                return PackedOFT(pack(2 * sign * halves[0]), None, True, embedding=self.embedding)
            like = next((part.delta.scale for part in parts if isinstance(part.delta, PeftBOFT)), None)
            return PeftBOFT(torch.stack([-2 * half for half in halves]), _shaped(scale, like))
        like = next((part.delta.rescale for part in parts if isinstance(part.delta, OFT | BOFT)), None)
        rescale = None if scale is None else _shaped(scale, like)
        if self.delta_type is BOFT:
            return BOFT(torch.stack(halves), 0.0, rescale)
        # OFT turns by the transpose of what its generator makes.
        blocks = [-half for half in halves]
        if self.delta_type is SplitOFT:
            return SplitOFT(tuple(blocks), max(_room(each) for each in blocks))
        if len(blocks) > 1:
            raise CombineError("orthofuse: the last block is cut off, as PEFT 0.13 did, so it is no rotation.")
        kohya = all(isinstance(part.delta, OFT) and part.delta.kohya for part in parts)
        return OFT(blocks[0], _room(blocks[0]) if kohya else 0.0, rescale, kohya)


def _shaped(scale: Tensor | None, like: Tensor | None) -> Tensor:
    """A scale (out,) in the shape that its file has it in, which is another for convolutions."""
    if scale is None:
        raise CombineError("orthofuse: the scale of the outputs is missing.")
    return scale[:, None] if like is None else scale.reshape(like.shape)


def _room(blocks: Tensor) -> float:
    """A constraint per output that does not clip these blocks."""
    norm = float((wide(blocks) - wide(blocks).transpose(1, 2)).norm())
    return max(norm, 1e-6) * (1 + 1e-5) / (blocks.shape[0] * blocks.shape[1])


def _stages(delta: Delta, shape: tuple[int, ...]) -> Stages:
    """The stages by the numbers of the delta alone; blocks that it shares are there once."""
    if isinstance(delta, OFT | BOFT):
        return delta.stages(delta.out_features)
    if isinstance(delta, SplitOFT):
        return delta.stages(sum(delta.sizes))
    if isinstance(delta, OFTDiag):
        return delta.stages(delta.diag.shape[0] * delta.diag.shape[1])
    if isinstance(delta, PeftBOFT):
        return delta.stages(delta.blocks.shape[1] * delta.blocks.shape[2], len(shape) > 2)
    if isinstance(delta, OldOutputOFT | OldInputOFT) and len(delta.blocks) == 1 and not shape:
        raise CombineError("orthofuse: how many blocks share the stored one is not in the files; give base=...")
    if isinstance(delta, OldOutputOFT):
        k, size, _ = delta.blocks.shape
        fits = bool(shape) and (k == 1 or math.ceil(shape[0] / k) == size)
        return delta.stages(shape[0] if fits else k * size)
    if isinstance(delta, PackedOFT | OldInputOFT):
        k, size = (len(delta.packed), delta.size) if isinstance(delta, PackedOFT) else delta.blocks.shape[:2]
        channels = math.prod(shape[1:]) if shape and k == 1 else k * size
        return delta.stages(channels if channels % size == 0 else k * size, len(shape) > 2)
    raise CombineError(f"orthofuse: {delta.algorithm} is no block rotation.")


def tangent(excess: Tensor, tolerance: float, part: Part) -> Tensor:
    """log R (k, n, n) in float64 of rotations less the identity. Raises CombineError where they are none."""
    e = wide(excess)
    off = float(torch.linalg.matrix_norm(e + e.mT + e.mT @ e).max())
    if off > tolerance:
        raise CombineError(
            f"orthofuse: the {part.delta.algorithm} of {part.owner} is {off:.2g} from a rotation; raise `tolerance` "
            f"above it (now {tolerance:g}) to take the rotation nearby, or use method='sum'."
        )
    # R = (I + Q)(I - Q)^-1, so Q = (R - I)(R + I)^-1, whose eigenvalues i tan(a / 2) tell the angles a.
    two = 2 * torch.eye(e.shape[-1], dtype=e.dtype, device=e.device)
    q = torch.linalg.solve(e + two, e)
    return _by_eigenvalues((q - q.mT) / 2, lambda t: 2 * t.atan())


def to_generator(log: Tensor) -> Tensor:
    """The Q of which exp(log) is the Cayley transform. Raises CombineError for half turns."""
    return _by_eigenvalues(log, _half_tangent)


def _half_tangent(angles: Tensor) -> Tensor:
    tangents = (angles / 2).tan()
    if bool((tangents.abs() > _STEEPEST).any()):
        raise CombineError("orthofuse: a block makes a half turn, which OFT cannot write; change a weight a little.")
    return tangents


def _by_eigenvalues(skew: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The skew matrix whose eigenvalues i x are i change(x), of the same vectors. change: odd."""
    values, vectors = torch.linalg.eigh(-1j * skew.to(torch.complex128))
    made = (1j * (vectors * change(values)[..., None, :].to(vectors.dtype)) @ vectors.mH).real
    found: Tensor = (made - made.mT) / 2
    return found

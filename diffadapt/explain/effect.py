"""`effect`: why an adapter is weak or strong on a pipeline: what its file asks for by block, and what of that is done.

Both sides are Frobenius norms of weight changes. A block falls short where its modules are not in the pipeline, where
strengths are below 1, where the adapter acts at a part of the steps only, or where the rounding of merged weights ate
the change.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from diffadapt.adapter import Adapter, Foreign, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.combine.analysis import Block, Field
from diffadapt.combine.walking import Name
from diffadapt.errors import MergeError
from diffadapt.inject.locate import weight_of
from diffadapt.inject.placement import LINEAR, Placement
from diffadapt.inject.schedule import START, Moment, Schedule

if TYPE_CHECKING:
    from diffadapt.inject.stack import PipelineAdapters

_MOMENTS = 60
"""How many moments of the denoising stand for all of them: a number that parts of the run divide."""


@dataclass(frozen=True)
class BlockEffect:
    """One block. modules: of the file; applied: of these in the pipeline. intended: the norm of the changes at strength
    1. realised: that of the changes at the strengths in force, on average over the steps, of what the weights took.
    relative: the realised norm by that of the base weights it acts on; None where these cannot be read."""

    block: Block
    modules: int
    applied: int
    intended: float
    realised: float
    relative: float | None


@dataclass(frozen=True)
class Effect:
    """An adapter's effect on a pipeline, by block. left_out: target -> why its change could not be measured."""

    name: str
    blocks: tuple[BlockEffect, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def intended(self) -> float:
        """The norm of the whole adapter at strength 1."""
        return math.hypot(*(row.intended for row in self.blocks))

    @property
    def realised(self) -> float:
        """The norm of all that is in force."""
        return math.hypot(*(row.realised for row in self.blocks))

    def share(self, row: BlockEffect) -> float:
        """The part of the adapter's energy (squared norm) that its file has in a block, 0 to 1."""
        return row.intended**2 / (self.intended**2 or 1.0)

    def to_dict(self) -> dict[str, Any]:
        """Plain types only, for JSON."""
        return {
            "name": self.name, "intended": self.intended, "realised": self.realised, "left_out": dict(self.left_out),
            "blocks": [
                {**row.block._asdict(), "modules": row.modules, "applied": row.applied, "share": self.share(row),
                 "intended": row.intended, "realised": row.realised, "relative": row.relative}
                for row in self.blocks
            ],
        }  # fmt: skip


@dataclass
class _Sums:
    """Squares of norms, of one block."""

    modules: int = 0
    applied: int = 0
    intended: float = 0.0
    realised: float = 0.0
    base: float = 0.0
    """NaN where a base weight cannot be read."""


@torch.no_grad()
def effect(pipeline: Any, name: str) -> Effect:
    """What a loaded adapter is meant to do and does, by block. Reads its tensors and the base weights that it acts on.

    Raises StackError for a name that is not loaded.
    """
    stack: PipelineAdapters = pipeline.adapters
    loaded = stack._get(name)
    placed: dict[Name, Placement] = {placement.source: placement for placement in loaded.placements}
    # As they are on the pipeline: bound to its weights, and with what training has made of them.
    adapter = loaded.with_deltas({source: placement.delta for source, placement in placed.items()})
    measured = Field([adapter, _ruled(adapter, placed)], pipeline)
    sums: dict[Block, _Sums] = {}
    for place in measured.places():
        if 0 not in place.changes:
            continue
        row = sums.setdefault(place.block, _Sums())
        square = place.changes[0].squared()
        row.modules += 1
        row.intended += square
        placement = placed.get(place.name)
        if placement is not None:
            row.applied += 1
            row.base += _base(stack, placement)
            size = place.changes[1].squared() if 1 in place.changes else square * _mean(placement) ** 2
            row.realised += size * _survived(stack, name, placement.key) ** 2 if stack.enabled else 0.0
    rows = tuple(_row(block, found) for block, found in sums.items())
    return Effect(name, rows, measured.left_out.get(measured.names[0], {}))


def _ruled(adapter: Adapter, placed: Mapping[Name, Placement]) -> Adapter:
    """The part of an adapter whose change is not in proportion to the strength (another rule's), as it is in force."""
    deltas: dict[Name, Delta] = {}
    for source, placement in placed.items():
        value = placement.value if placement.schedule is None else _mean(placement)
        if placement.rule != LINEAR and value:
            deltas[source] = placement.delta.at_strength(value, placement.rule)
    targets = {key: delta for key, delta in deltas.items() if isinstance(key, TargetKey)}
    foreign = {key: delta for key, delta in deltas.items() if isinstance(key, Foreign)}
    return replace(adapter, targets=targets, foreign=foreign)


def _row(block: Block, found: _Sums) -> BlockEffect:
    relative = math.sqrt(found.realised / found.base) if found.base > 0 else None
    return BlockEffect(
        block, found.modules, found.applied, math.sqrt(found.intended), math.sqrt(found.realised), relative
    )


def _mean(placement: Placement) -> float:
    """A strength's size on average over the denoising; text encoders run once, before it."""
    number = placement.number
    if not isinstance(number, Schedule):
        return abs(number)
    moments = [START] if "encoder" in placement.key.component else [Moment(i / _MOMENTS, i) for i in range(_MOMENTS)]
    return sum(abs(number.at(moment)) for moment in moments) / len(moments)


def _survived(stack: PipelineAdapters, name: str, key: TargetKey) -> float:
    """How much of an adapter's change a layer's merged weight took; all of it where it is live."""
    merge = stack.merge_of(name, key)
    return 1.0 if merge is None else merge.survived


def _base(stack: PipelineAdapters, placement: Placement) -> float:
    """The squared norm of the weight that a placement acts on, without what is merged into it; NaN where it cannot be
    read."""
    try:
        remembered = stack.base_weight(placement.key)
        weight = weight_of(placement.module) if remembered is None else remembered
    except (MergeError, AttributeError):
        return math.nan
    return float(torch.linalg.vector_norm(weight.detach(), dtype=torch.float32)) ** 2

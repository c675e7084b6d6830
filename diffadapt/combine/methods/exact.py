"""The weighted sum of the changes, D = sum(w_i D_i): what loading all adapters at these strengths does.

`sum` is exact and keeps what structure it can: a single delta stays of its algorithm, low-rank deltas become one LoRA
whose rank is the sum of theirs, everything else a full difference. `cat` is the same as a LoRA or not at all. `svd` is
the best LoRA of a rank (Eckart and Young): no other rule loses less of the sum at that size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.combine.build import dense_delta, pair_delta, scaled
from diffadapt.combine.methods.base import InSpace, Method
from diffadapt.combine.part import Part
from diffadapt.combine.space import Space
from diffadapt.errors import CombineError


def _joined(parts: Sequence[Part]) -> tuple[Tensor, Tensor] | None:
    """The pairs of all parts as one, the weights in the ups; None where a part has none."""
    pairs = [part.pair() for part in parts]
    known = [pair for pair in pairs if pair is not None]
    if len(known) < len(pairs):
        return None
    ups = [up * part.weight for (up, _), part in zip(known, parts, strict=True)]
    return torch.cat(ups, 1), torch.cat([down for _, down in known])


@dataclass(frozen=True)
class Sum(Method):
    """The exact sum, in the smallest form that holds it."""

    name: ClassVar[str] = "sum"
    by_target: ClassVar[bool] = True

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        if rank is not None:
            return SVD().weight(parts, rank)
        if len(parts) == 1:
            return scaled(parts[0]), 0.0
        joined, (rows, columns) = _joined(parts), parts[0].flat
        if joined is not None and joined[1].shape[0] * (rows + columns) <= rows * columns:
            return pair_delta(*joined, parts), 0.0
        total = parts[0].dense() * parts[0].weight
        for part in parts[1:]:
            total.add_(part.dense(), alpha=part.weight)
        return dense_delta(total, parts), 0.0


@dataclass(frozen=True)
class Cat(Method):
    """The exact sum as one LoRA; its rank is the sum of the ranks."""

    name: ClassVar[str] = "cat"
    by_target: ClassVar[bool] = True

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        if rank is not None:
            raise CombineError("cat: the rank is the sum of the ranks; ask svd for another one.")
        joined = _joined(parts)
        if joined is None:
            owner = next(part for part in parts if part.pair() is None)
            raise CombineError(
                f"cat: the {owner.delta.algorithm} of {owner.owner} has no low-rank pair; use method='sum', which "
                "keeps it dense, or method='svd' with a rank."
            )
        return pair_delta(*joined, parts), 0.0


@dataclass(frozen=True)
class SVD(InSpace):
    """The best LoRA of a rank (default: the largest rank among the parts)."""

    name: ClassVar[str] = "svd"
    by_target: ClassVar[bool] = True

    def core(self, space: Space, weights: Sequence[float]) -> Tensor:
        return weighted(space.cores, weights)

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        ranks = [part.delta.rank for part in parts if part.delta.rank is not None]
        return super().weight(parts, rank or max(ranks, default=min(parts[0].flat)))


def weighted(matrices: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum(w_i M_i), in a tensor of its own."""
    total = matrices[0] * weights[0]
    for matrix, weight in zip(matrices[1:], weights[1:], strict=True):
        total.add_(matrix, alpha=weight)
    return total

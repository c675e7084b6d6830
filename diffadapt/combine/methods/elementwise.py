"""What all methods share that decide number by number of the weight: each change is pruned, then all are joined."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.combine.build import dense_delta, pair_delta
from diffadapt.combine.methods.base import Method
from diffadapt.combine.methods.pruning import elected, expect_majority, summed
from diffadapt.combine.part import Part
from diffadapt.combine.space import truncated

SAMPLED = 256
"""How many numbers of a tensor its mark is made of."""


@dataclass(frozen=True)
class Elementwise(Method):
    """A method that decides number by number, and so needs the changes themselves, not their factors.

    Its result has full rank: it is kept dense unless a rank is asked for, which then costs what `losses` say. Biases
    and norms are joined by the same rule. A single adapter is pruned like any other.
    """

    keeps_one: ClassVar[bool] = False

    def prune(self, change: Tensor, mark: bytes) -> Tensor:
        """What is left of one change (out, in * kernel), which may be overwritten. mark: tells it from all others."""
        return change

    def __post_init__(self) -> None:
        """Raise CombineError for an option that is out of range; there is none here."""

    def join(self, changes: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
        """The pruned changes as one: their weighted sum. changes: made as they are iterated, may be overwritten."""
        return summed(changes, weights)

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        pruned = (self.prune(_own(part), mark_of(part.delta.tensors().values())) for part in parts)
        change = self.join(pruned, [part.weight for part in parts])
        if rank is None:
            return dense_delta(change, parts), 0.0
        found = truncated(change, rank)
        return pair_delta(found.up, found.down, parts), found.lost

    def vector(self, changes: Sequence[tuple[float, Tensor]]) -> Tensor:
        return self.joined([change for _, change in changes], [weight for weight, _ in changes])

    def joined(self, tensors: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """The rule on tensors of any one shape, which are left as they are."""
        pruned = (self.prune(_matrix(tensor), mark_of([tensor])) for tensor in tensors)
        return self.join(pruned, weights).reshape(tensors[0].shape)


@dataclass(frozen=True)
class Elected(Elementwise):
    """The same with TIES' election: the weighted mean of what has the elected sign. majority_sign: "total" elects the
    sign of the sum of the numbers, "frequency" that of the sum of their signs."""

    majority_sign: str = "total"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_majority(self.name, self.majority_sign)

    def join(self, changes: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
        return elected(changes, weights, self.majority_sign)


class AtRank(Elementwise):
    """The same method, brought to a rank unless one is given: the largest among the parts, as PEFT's `*_svd` do."""

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        ranks = [part.delta.rank for part in parts if part.delta.rank is not None]
        return super().weight(parts, rank or max(ranks, default=min(parts[0].flat)))


def mark_of(tensors: Iterable[Tensor]) -> bytes:
    """A fingerprint of tensors by some of their numbers: the same whatever the file's name, order and device."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED]
        digest.update(some.to("cpu", torch.float64).numpy().tobytes())
    return digest.digest()


def generator(seed: int, mark: bytes) -> torch.Generator:
    """A source of random numbers for one change. It is the CPU's, so that every device gets the same."""
    digest = hashlib.blake2b(mark, digest_size=4, key=str(seed).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def _own(part: Part) -> Tensor:
    """The change of a part in memory of its own, for a full difference is the adapter's very tensor."""
    change = part.dense().detach().contiguous()
    theirs = {tensor.untyped_storage().data_ptr() for tensor in part.delta.tensors().values()}
    return change.clone() if change.untyped_storage().data_ptr() in theirs else change


def _matrix(tensor: Tensor) -> Tensor:
    """A float32 copy with two dimensions; a vector is one row."""
    copy = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return copy[None] if copy.ndim < 2 else copy.flatten(1)

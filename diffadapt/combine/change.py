"""A change of one weight in the cheapest form that holds it, and what can be asked of it: inner products with another,
singular values, the leading singular vectors, the best approximation of a rank.

Pairs are worked out in the space of their rank (QR of both factors, then an SVD of the small core), Kronecker products
in their factors, and only what has no structure as the matrix itself. Everything small is float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from diffadapt.algorithms.base import f32
from diffadapt.algorithms.lokr import LoKr
from diffadapt.combine.part import Part
from diffadapt.combine.space import Factors

_EXACT = 768
"""Matrices of up to so many rows or columns are taken apart exactly; larger ones only as far as is asked for."""
_EXTRA, _PASSES = 16, 6
"""Further directions, and passes over the matrix, of the randomised method."""


class Leading(NamedTuple):
    """left (out, r), values (r,) descending, right (in * kernel, r)."""

    left: Tensor
    values: Tensor
    right: Tensor


class Change(ABC):
    """A change as a matrix (out, in * kernel)."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """How many singular values it may have that are not zero."""

    @abstractmethod
    def matrix(self) -> Tensor:
        """The change itself, float32."""

    @abstractmethod
    def squared(self) -> float:
        """The squared Frobenius norm."""

    @abstractmethod
    def values(self) -> Tensor:
        """All singular values, descending, float64; zeros beyond `rank` are left out."""

    @abstractmethod
    def leading(self, rank: int) -> Leading:
        """The `rank` largest singular values and their vectors, or all where there are fewer."""

    def truncated(self, rank: int) -> Factors:
        """The best approximation of a rank (Eckart and Young), as up (out, r) and down (r, in * kernel) in float32.

        Both factors carry the root of the singular values, so that neither has numbers too small for half precision.
        """
        left, values, right = self.leading(rank)
        root = values.sqrt()
        up, down = (left * root).float(), (right * root).T.float()
        return Factors(up, down, self._lost(up, down, rank))

    def _lost(self, up: Tensor, down: Tensor, rank: int) -> float:
        """The relative Frobenius error: what the values beyond the rank hold."""
        squares = self.values().square()
        total = float(squares.sum())
        return (float(squares[rank:].sum()) / total) ** 0.5 if total else 0.0


@dataclass(frozen=True, eq=False)
class PairChange(Change):
    """up (out, r) @ down (r, in * kernel), both float64."""

    up: Tensor
    down: Tensor

    @property
    def rank(self) -> int:
        return int(min(*self.up.shape, *self.down.shape))

    def matrix(self) -> Tensor:
        return self.up.float() @ self.down.float()

    def squared(self) -> float:
        return max(0.0, inner(self, self))

    @cached_property
    def _svd(self) -> Leading:
        left, upper = torch.linalg.qr(self.up)
        right, lower = torch.linalg.qr(self.down.T)
        u, s, vh = torch.linalg.svd(upper @ lower.T, full_matrices=False)
        return Leading(left @ u, s, right @ vh.T)

    def values(self) -> Tensor:
        return self._svd.values

    def leading(self, rank: int) -> Leading:
        left, values, right = self._svd
        return Leading(left[:, :rank], values[:rank], right[:, :rank])


@dataclass(frozen=True, eq=False)
class KroneckerChange(Change):
    """small (l, m) kron large (k, n), both float64, the scale in the small one.

    Singular values are the products of the factors', vectors the Kronecker products of theirs.
    """

    small: Tensor
    large: Tensor

    @property
    def rank(self) -> int:
        return min(self.small.shape) * min(self.large.shape)

    def matrix(self) -> Tensor:
        return torch.kron(self.small.float().contiguous(), self.large.float().contiguous())

    def squared(self) -> float:
        return float(self.small.square().sum() * self.large.square().sum())

    @cached_property
    def _svds(self) -> tuple[Leading, Leading]:
        return _svd(self.small), _svd(self.large)

    @cached_property
    def _order(self) -> tuple[Tensor, Tensor]:
        """All values, descending, and which product each one is."""
        first, second = self._svds
        values = torch.outer(first.values, second.values).flatten()
        return torch.sort(values, descending=True, stable=True)

    def values(self) -> Tensor:
        return self._order[0]

    def leading(self, rank: int) -> Leading:
        first, second = self._svds
        values, order = self._order
        one, two = (order[:rank] // len(second.values)), (order[:rank] % len(second.values))

        def products(a: Tensor, b: Tensor) -> Tensor:
            return (a[:, None, one] * b[None, :, two]).reshape(-1, len(one))

        return Leading(products(first.left, second.left), values[:rank], products(first.right, second.right))


@dataclass(frozen=True, eq=False)
class DenseChange(Change):
    """A change without structure; float32."""

    change: Tensor

    @property
    def rank(self) -> int:
        return min(self.change.shape)

    def matrix(self) -> Tensor:
        return self.change

    def squared(self) -> float:
        return float(torch.linalg.vector_norm(self.change, dtype=torch.float64)) ** 2

    @cached_property
    def _values(self) -> Tensor:
        found: Tensor = torch.linalg.svdvals(self.change).double()
        return found

    def values(self) -> Tensor:
        """All singular values; of a large matrix this takes long."""
        return self._values

    def leading(self, rank: int) -> Leading:
        """Of matrices over 768 x 768 the randomised subspace iteration of Halko, Martinsson and Tropp (arXiv
        0909.4061), from the same start each time."""
        smallest = min(self.change.shape)
        if smallest <= _EXACT or 3 * rank >= smallest:
            left, values, right = _svd(self.change)
            return Leading(left[:, :rank], values[:rank], right[:, :rank])
        start = torch.randn(self.change.shape[1], rank + _EXTRA, generator=torch.Generator().manual_seed(0))
        basis = torch.linalg.qr(self.change @ start.to(self.change)).Q
        for _ in range(_PASSES):
            basis = torch.linalg.qr(self.change @ torch.linalg.qr(self.change.T @ basis).Q).Q
        left, values, right = _svd(basis.T @ self.change)
        return Leading((basis @ left)[:, :rank], values[:rank], right[:, :rank])

    def _lost(self, up: Tensor, down: Tensor, rank: int) -> float:
        total = torch.linalg.vector_norm(self.change)
        if rank >= self.rank or not total:
            return 0.0
        return float(torch.linalg.vector_norm(torch.addmm(self.change, up, down, alpha=-1)) / total)


def _svd(matrix: Tensor) -> Leading:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return Leading(u, s, vh.T)


def change_of(part: Part) -> Change:
    """The change of a part, without its weight. Raises CombineError where the base weight is wanted and missing."""
    pair = part.pair()
    if pair is not None:
        return PairChange(pair[0].double(), pair[1].double())
    factors = kronecker_factors(part)
    return DenseChange(part.dense()) if factors is None else KroneckerChange(*factors)


def kronecker_factors(part: Part) -> tuple[Tensor, Tensor] | None:
    """(l, m) and (k, n * kernel) in float64, the scale in the first, of a LoKr that is one Kronecker product of
    matrices; None of others."""
    delta = part.delta
    if not isinstance(delta, LoKr) or delta.left_padded or delta.cut is not None:
        return None
    small = _product(delta.w1, delta.w1_a, delta.w1_b)
    outer, core = delta.w2_a, delta.w2_b
    if delta.t2 is not None and outer is not None and core is not None:
        outer, core = outer.T, torch.einsum("ab...,bc->ac...", f32(delta.t2), f32(core))
    large = _product(delta.w2, outer, core)
    return None if small is None or large is None else (small * delta.scale, large)


def _product(whole: Tensor | None, a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """A factor that is given whole or as a pair, as a matrix in float64."""
    if whole is not None:
        return whole.double().flatten(1)
    return None if a is None or b is None else a.double().flatten(1) @ b.double().flatten(1)


def inner(one: Change, other: Change) -> float:
    """The inner product of two changes of one weight, tr(one' other).

    Of two pairs tr((up_1' up_2)(down_2 down_1')), products of the size of the ranks; of two Kronecker products of the
    same sizes the product of their factors'.
    """
    if isinstance(one, PairChange) and isinstance(other, PairChange):
        return float(((one.up.T @ other.up) * (one.down @ other.down.T)).sum())
    if isinstance(one, KroneckerChange) and isinstance(other, KroneckerChange):
        if (one.small.shape, one.large.shape) == (other.small.shape, other.large.shape):
            return float((one.small * other.small).sum() * (one.large * other.large).sum())
    elif isinstance(other, PairChange):
        return inner(other, one)
    if isinstance(one, PairChange):
        return float(((one.up.T.float() @ other.matrix()) * one.down.float()).double().sum())
    # Row by row, so that no product of the size of the weight is made.
    return float(torch.linalg.vecdot(one.matrix(), other.matrix()).double().sum())

"""How large the change of a module is, where that takes no base weight and no dense product."""

from __future__ import annotations

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta, f32
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.loha import LoHa
from diffadapt.algorithms.lokr import LoKr
from diffadapt.errors import AlgorithmError


def norm_of(delta: Delta) -> float | None:
    """The Frobenius norm of a delta's change at full strength; None where the base weight decides it."""
    try:
        return _norm(delta)
    except AlgorithmError:
        return None  # what it needs is not in the file


def _norm(delta: Delta) -> float | None:
    if isinstance(delta, LoKr):
        return None if delta.cut is not None else _kronecker(delta)
    if isinstance(delta, LoHa):
        # The two products have no common factor: the dense change, in the shape that its factors have.
        rows = delta.w1_a.shape[0 if delta.t1 is None else 1]
        kernel = 1 if delta.t1 is None else delta.t1[0, 0].numel()
        return _dense(delta.weight_delta(torch.empty(rows, delta.w1_b[0].numel() * kernel)))
    if isinstance(delta, Full):
        return None if delta.diff is None else _dense(delta.diff)
    pair = delta.low_rank()
    return None if pair is None else abs(pair.scale) * _product(pair.up, pair.down)


def _product(up: Tensor, down: Tensor) -> float:
    """||up down||: the trace of (up' up)(down down'), two products of the size of the rank."""
    up, down = f32(up).flatten(1), f32(down).flatten(1)
    squared = ((up.T @ up).double() * (down @ down.T).double()).sum()
    # Rounding may leave a negative trifle where the change is zero.
    return float(squared.clamp(min=0).sqrt())


def _dense(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float32))


def _kronecker(delta: LoKr) -> float:
    """The norm of a Kronecker product is the product of the norms."""
    first = _factor(delta.w1, delta.w1_a, delta.w1_b)
    if delta.w2 is None and delta.t2 is not None and delta.w2_a is not None and delta.w2_b is not None:
        inner = torch.einsum("ab...,bc->ac...", f32(delta.t2), f32(delta.w2_b))
        return abs(delta.scale) * first * _product(delta.w2_a.T, inner)
    return abs(delta.scale) * first * _factor(delta.w2, delta.w2_a, delta.w2_b)


def _factor(whole: Tensor | None, a: Tensor | None, b: Tensor | None) -> float:
    if whole is not None:
        return _dense(whole)
    if a is None or b is None:
        raise AlgorithmError("lokr: a factor is missing; expected it whole or as the pair a and b.")
    return _product(a, b)

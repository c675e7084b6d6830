"""`to_lora`: any adapter as LoRA, which everything reads: exactly where the change is low-rank, else the best there is.

Exact pairs: LoRA with a Tucker core, DyLoRA, AdaLoRA, DeLoRA and whatever else has a pair of its own; LoHa of rank r as
rank r^2 (the Khatri-Rao products of its factors); LoKr with a low-rank second factor of rank r as rank min(l, m) r;
LyCORIS' GLoRA on a Linear, with the base at hand, as rank 2r.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.algorithms.base import Delta, f32
from diffadapt.algorithms.glora import GLoRA
from diffadapt.algorithms.loha import LoHa
from diffadapt.algorithms.lokr import LoKr
from diffadapt.algorithms.lora import LoRA
from diffadapt.combine.build import pair_delta
from diffadapt.combine.change import Change, PairChange, change_of, kronecker_factors
from diffadapt.combine.part import Part
from diffadapt.combine.walking import rebuilt
from diffadapt.errors import CombineError

Pair = tuple[Tensor, Tensor]


def to_lora(
    adapter: Adapter, rank: int | None = None, *, base: Any = None, exact: bool = True, dtype: torch.dtype | None = None
) -> Adapter:
    """The adapter with every weight's change as a LoRA.

    rank: for changes that no LoRA smaller than the weight holds exactly (LoKr with full factors, whole differences,
    rotations, DoRA): the best of that rank, its relative Frobenius error in `losses`. exact: keep low-rank changes
    exact at whatever rank that takes; False: none gets more than `rank`. base: the pipeline, where changes depend on
    its weights. dtype: of the new tensors; None: as before.

    Norms, biases and embeddings stay as they are. Raises CombineError with the names of all targets that cannot be
    converted: no rank was given where one is needed, the base is missing, or the change depends on the timestep.
    """
    if rank is not None and rank < 1:
        raise CombineError(f"the rank is {rank}; expected at least 1.")
    if rank is None and not exact:
        raise CombineError("exact=False limits every layer to a rank; give rank=.")

    def make(part: Part) -> tuple[Delta, float]:
        delta = part.delta
        if isinstance(delta, LoRA) and delta.mid is None and (exact or rank is None or delta.rank <= rank):
            return delta, 0.0
        pair = exact_pair(part)
        if pair is not None and (exact or rank is None or pair[1].shape[0] <= rank):
            return pair_delta(*pair, [part]), 0.0
        if rank is None:
            raise CombineError(f"{delta.algorithm} has no exact LoRA smaller than the weight {part.shape}; give rank=.")
        change: Change = change_of(part) if pair is None else PairChange(pair[0].double(), pair[1].double())
        found = change.truncated(min(rank, *part.flat))
        return pair_delta(found.up, found.down, [part]), found.lost

    return rebuilt(adapter, make, {"method": "to_lora", "rank": rank, "exact": exact}, base, dtype)


def exact_pair(part: Part) -> Pair | None:
    """up (out, r) and down (r, in * kernel) in float32 that make exactly the change, in no more numbers than the weight
    has; None where there is no such pair.

    Raises CombineError where the base weight is wanted and missing.
    """
    delta, flat = part.delta, part.flat
    if isinstance(delta, LoRA):
        return part.pair()
    if isinstance(delta, LoHa) and _fits(delta.rank**2, flat):
        found = delta.pair()
        return found.up * found.scale, found.down
    if isinstance(delta, LoKr):
        return _of_lokr(delta, part)
    if isinstance(delta, GLoRA) and math.prod(part.shape[2:]) == 1 and _fits(2 * delta.rank, flat):
        return _of_glora(delta, part.base())
    pair = part.pair()
    return pair if pair is not None and _fits(pair[1].shape[0], flat) else None


def _fits(rank: int, flat: tuple[int, int]) -> bool:
    return rank * sum(flat) <= math.prod(flat)


def _of_lokr(delta: LoKr, part: Part) -> Pair | None:
    """(a1 kron a2)(b1 kron b2) of w1 = a1 b1 and w2 = a2 b2, where a w2 of low rank makes that small."""
    if delta.w2_a is None or delta.w2_b is None or (factors := kronecker_factors(part)) is None:
        return None
    small, large = factors
    inner = min(min(small.shape), delta.w1_a.shape[1] if delta.w1_a is not None else math.inf)
    rank = int(inner) * min(delta.w2_b.shape[0], *large.shape)
    if not _fits(rank, part.flat):
        return None
    parts = []
    for matrix, size in ((small, int(inner)), (large, rank // int(inner))):
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        parts.append((u[:, :size] * s[:size].sqrt(), s[:size].sqrt()[:, None] * vh[:size]))
    (a1, b1), (a2, b2) = parts
    return _kron(a1, a2).float(), _kron(b1, b2).float()


def _kron(one: Tensor, other: Tensor) -> Tensor:
    """The Kronecker product; torch.kron refuses some strides."""
    return torch.einsum("ab,cd->acbd", one, other).reshape(len(one) * len(other), -1)


def _of_glora(delta: GLoRA, weight: Tensor) -> Pair:
    """s (W a1 a2 + b1 b2) = s [W a1, b1] [a2; b2]."""
    mix_up, mix_down = (f32(t, weight) for t in delta.mix)
    addition = delta.addition
    up = torch.cat([f32(weight).flatten(1) @ mix_up, f32(addition.up, weight).flatten(1)], 1)
    return up * delta.scale, torch.cat([mix_down, f32(addition.down, weight).flatten(1)])

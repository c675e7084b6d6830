"""From matrices back to deltas, in the orientation and with the kernel of the weight that they are for."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.loha import LoHa
from diffadapt.algorithms.lokr import LoKr
from diffadapt.algorithms.lora import LoRA
from diffadapt.combine.part import Part


def pair_delta(up: Tensor, down: Tensor, parts: Sequence[Part]) -> LoRA:
    """A LoRA of scale 1 that makes up (out, r) @ down (r, in * kernel)."""
    shape, rank = parts[0].shape, down.shape[0]
    if any(isinstance(part.delta, LoRA) and part.delta.embedding for part in parts):
        return LoRA(up.T.contiguous(), down.T.contiguous(), float(rank), embedding=True, transposed=True)
    return LoRA(down.reshape(rank, *shape[1:]).contiguous(), up.contiguous(), float(rank))


def dense_delta(change: Tensor, parts: Sequence[Part]) -> Full:
    """A full difference from a matrix (out, in * kernel)."""
    return Full(change.reshape(parts[0].shape).contiguous())


def scaled(part: Part) -> Delta:
    """A single delta times its weight, in its own algorithm where that is linear in one of its numbers."""
    delta, weight = part.delta, part.weight
    if weight == 1.0:
        return delta
    if isinstance(delta, LoRA | LoHa):
        return dataclasses.replace(delta, alpha=delta.alpha * weight)
    if isinstance(delta, LoKr):
        if delta.size is not None:
            return dataclasses.replace(delta, alpha=delta.alpha * weight)
        if delta.w1 is not None:  # files with two full factors have no scale: it goes into one of them
            return dataclasses.replace(delta, w1=delta.w1.float() * weight)
        return dataclasses.replace(delta, full_scale=delta.full_scale * weight)
    pair = part.pair()
    if pair is not None:
        return pair_delta(pair[0] * weight, pair[1], [part])
    return dense_delta(part.dense() * weight, [part])

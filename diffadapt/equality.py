"""Whether two deltas are the same: how a file that is written is checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from diffadapt.algorithms import Delta
from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.glora_peft import Path
from diffadapt.algorithms.total import Sum


def difference(one: object, other: object, what: str = "delta") -> str | None:
    """What differs between two deltas, in words; None where they are equal."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        equal = _same_memory(one, other) or (one.dtype == other.dtype and torch.equal(one.squeeze(), other.squeeze()))
        return None if equal else f"{what} would change"
    if isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6):
        return None
    if isinstance(one, tuple) and isinstance(other, tuple) and len(one) == len(other):
        pairs = [(a, b, what) for a, b in zip(one, other, strict=True)]
    elif isinstance(one, Sum) and isinstance(other, Sum):
        # A sum has no order: reading finds its parts in the registry's.
        ours, theirs = (sorted(delta.parts, key=lambda part: part.algorithm) for delta in (one, other))
        pairs = [(tuple(ours), tuple(theirs), what)]
    elif isinstance(one, (Delta, Path)) and type(one) is type(other):
        pairs = _fields(one, other)
    elif isinstance(one, Mapping) and isinstance(other, Mapping) and one.keys() == other.keys():
        pairs = [(one[key], other[key], key) for key in one]
    elif isinstance(one, Delta) and isinstance(other, Delta):
        return f"{what} would be {other.algorithm} instead of {one.algorithm}"
    else:
        return None if one == other else f"{what} would be {other!r} instead of {one!r}"
    return next((text for a, b, name in pairs if (text := difference(a, b, name))), None)


def _fields(one: Delta | Path, other: object) -> list[tuple[object, object, str]]:
    """What is to be compared of two deltas of one class; of a Bank only what the delta takes from it."""
    scale = getattr(one, "scale", None)
    same_scale = scale is not None and difference(scale, getattr(other, "scale", None)) is None
    names = [f.name for f in dataclasses.fields(one) if f.compare and not (same_scale and f.name in _SCALE_FIELDS)]
    pairs = [(getattr(one, name), getattr(other, name), name) for name in names]
    pairs = [pair for pair in pairs if not isinstance(pair[0], Bank)]
    if isinstance(one, Delta) and isinstance(other, Delta):
        pairs.append((one.bank_tensors, other.bank_tensors, "what all modules share"))
    return pairs


def _same_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same order because they lie at the same place."""
    if one is other:
        return True
    at = [(t.untyped_storage()._cdata, t.storage_offset(), t.dtype, t.squeeze().shape) for t in (one, other)]
    return at[0] == at[1] and one.is_contiguous() and other.is_contiguous()


# Ways to say one scale; `size` is what the alpha of a LoKr with two full factors is divided by.
_SCALE_FIELDS = frozenset({"alpha", "rank_stabilised", "said_alpha", "size"})

"""`resize`: an adapter at smaller ranks, and `spectrum`, by which to choose them.

The rules are those of sd-scripts' `networks/resize_lora.py` (sv_ratio, sv_fro, sv_cumulative), so that its numbers
mean the same here. With singular values s_1 >= s_2 >= ... of a layer's change:

ratio q         keep every s_i > s_1 / q
share p         the smallest rank whose norm is p of the whole: sum(s_i^2, kept) >= p^2 sum(s_i^2)
cumulative p    the smallest rank whose sum is p of the whole: sum(s_i, kept) >= p sum(s_i)

A rank given beside one of them is the most that any layer gets; a layer without any change gets rank 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from diffadapt.adapter import Adapter
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.lora import LoRA
from diffadapt.combine.build import pair_delta
from diffadapt.combine.change import change_of
from diffadapt.combine.ground import Ground
from diffadapt.combine.part import Part
from diffadapt.combine.walking import Name, deltas_of, part_of, rebuilt, stays
from diffadapt.errors import CombineError

_ZERO = 1e-6
"""A largest singular value of so little means that the layer does nothing (sd-scripts' own bound)."""


def resize(
    adapter: Adapter,
    rank: int | None = None,
    *,
    ratio: float | None = None,
    share: float | None = None,
    cumulative: float | None = None,
    base: Any = None,
    dtype: torch.dtype | None = None,
) -> Adapter:
    """The adapter with every weight's change as the best LoRA of a smaller rank.

    rank: of every layer; beside a rule, the most that a layer gets. ratio (>= 1), share, cumulative (both in (0, 1]):
    one of them, for a rank by layer; see the module for what they mean. base: the pipeline, where changes depend on
    its weights. dtype: of the new tensors; None: as before.

    Changes that are low-rank or Kronecker products are never made dense. A LoRA that already has the rank stays as it
    is; norms, biases and embeddings stay too. `losses` has the relative Frobenius error by target. Raises CombineError
    for a wrong option, and with the names of the targets whose base weight is missing.
    """
    rule = _rule(rank, ratio, share, cumulative)

    def make(part: Part) -> tuple[Delta, float]:
        change = change_of(part)
        fixed = ratio is None and share is None and cumulative is None and rank is not None
        new = min(rank, change.rank) if fixed and rank is not None else rule(change.values())
        own = part.delta
        if isinstance(own, LoRA) and own.mid is None and own.rank <= new:
            return own, 0.0
        found = change.truncated(new)
        return pair_delta(found.up, found.down, [part]), found.lost

    note = {"method": "resize", "rank": rank, "ratio": ratio, "share": share, "cumulative": cumulative}
    return rebuilt(adapter, make, {key: value for key, value in note.items() if value is not None}, base, dtype)


def spectrum(adapter: Adapter, *, base: Any = None) -> dict[Name, Tensor]:
    """The singular values of every weight's change, by target: descending, float64.

    base: the pipeline, where changes depend on its weights. Raises CombineError where it is wanted and missing.
    """
    ground = Ground(base, adapter.candidates)
    return {
        name: change_of(part_of(name, delta, adapter.source, ground)).values()
        for name, delta in deltas_of(adapter)
        if not stays(name, delta, adapter.candidates)
    }


def rank_by_ratio(values: Tensor, ratio: float) -> int:
    """How many singular values are more than the largest by `ratio`; at least 1."""
    return max(1, int((values > values[0] / ratio).sum()))


def rank_by_share(values: Tensor, share: float) -> int:
    """The smallest rank that keeps `share` of the Frobenius norm."""
    return _reaching(values.square().cumsum(0), share**2)


def rank_by_sum(values: Tensor, share: float) -> int:
    """The smallest rank that keeps `share` of the sum of singular values."""
    return _reaching(values.cumsum(0), share)


def _reaching(sums: Tensor, share: float) -> int:
    """The first place at which rising sums reach a share of the last of them; counted from 1."""
    return min(int(torch.searchsorted(sums / sums[-1], share)) + 1, len(sums))


def _rule(
    rank: int | None, ratio: float | None, share: float | None, cumulative: float | None
) -> Callable[[Tensor], int]:
    """Singular values -> rank. Raises CombineError for options that contradict each other or are out of range."""
    given = [
        name for name, value in (("ratio", ratio), ("share", share), ("cumulative", cumulative)) if value is not None
    ]
    if len(given) > 1:
        raise CombineError(f"{' and '.join(given)} are different rules; give one of them.")
    if rank is None and not given:
        raise CombineError("nothing says how small; give rank=, or one of ratio=, share=, cumulative=.")
    if rank is not None and rank < 1:
        raise CombineError(f"the rank is {rank}; expected at least 1.")
    if ratio is not None and not ratio >= 1:
        raise CombineError(f"ratio is {ratio}; expected at least 1: the largest singular value by the smallest kept.")
    for name, value in (("share", share), ("cumulative", cumulative)):
        if value is not None and not 0 < value <= 1:
            raise CombineError(f"{name} is {value}; expected more than 0 and at most 1.")

    def new_rank(values: Tensor) -> int:
        if not len(values) or float(values[0]) <= _ZERO:
            return 1
        found = len(values)
        if ratio is not None:
            found = rank_by_ratio(values, ratio)
        elif share is not None:
            found = rank_by_share(values, share)
        elif cumulative is not None:
            found = rank_by_sum(values, cumulative)
        return found if rank is None else min(found, rank)

    return new_rank

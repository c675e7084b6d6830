"""From a file's modules to a pipeline's: rows cut, joined or exchanged where the trainer saw other modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from torch import Tensor

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.rows import InRows, OfFused
from diffadapt.errors import AlgorithmError
from diffadapt.families.names import Route
from diffadapt.families.shapes import output_rows


def exchanged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The tensors with the halves of their output rows swapped (native shift|scale, Diffusers scale|shift).

    None where a tensor's rows are not the layer's (rotations, Kronecker factors): the delta is wrapped then.
    """
    rows = output_rows(tensors)
    changed: dict[str, Tensor] = {}
    for role, tensor in tensors.items():
        if role in _ROWLESS or tensor.ndim == 0 or (role == "dora_scale" and tensor.shape[0] == 1):
            changed[role] = tensor
        elif role in _BY_ROW and rows is not None and rows % 2 == 0 and tensor.shape[0] == rows:
            changed[role] = tensor.roll(rows // 2, 0)
        else:
            return None
    return changed


def exchanged_by_onetrainer(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of a file by OneTrainer: its converter exchanges these two tensors, and leaves the factors of LoHa and
    LoKr in the order of Diffusers' rows under the native name."""

    def by_row(role: str, tensor: Tensor) -> bool:
        return role == "lora_up" or (role == "dora_scale" and tensor.ndim > 0 and tensor.shape[0] > 1)

    return {role: t.roll(t.shape[0] // 2, 0) if by_row(role, t) else t for role, t in tensors.items()}


def parts(
    route: Route, component: str, delta: Delta, tensors: Mapping[str, Tensor], module: str
) -> Iterator[tuple[TargetKey, Delta]]:
    """The targets of one foreign module and what each gets: the delta itself, or its rows in the order of the route.

    Raises AlgorithmError where the rows do not divide in the route's proportions.
    """
    if len(route.modules) == 1:
        yield TargetKey(component, route.modules[0]), delta if route.part is None else InRows(delta, *route.part)
        return
    total, rows = sum(route.shares), output_rows(tensors)
    if rows is not None and rows % total:
        raise AlgorithmError(
            f"{module}: a fused projection of {len(route.modules)} parts, whose rows ({rows}) do not "
            f"divide {':'.join(map(str, route.shares))}. The adapter is for another model."
        )
    unit = rows // total if rows is not None else None
    stops = [*accumulate(route.shares)]
    for index, (target, start, stop) in enumerate(zip(route.modules, [0, *stops], stops, strict=False)):
        part = _cut(delta, start, stop, unit)
        yield TargetKey(component, target), part or OfFused(delta, index, route.modules, route.shares)


def _cut(delta: Delta, start: int, stop: int, unit: int | None) -> Delta | None:
    """The delta of some rows alone, or None where it depends on the others. unit: rows of one share, None if untold."""
    try:
        if unit is not None:
            return delta.rows(start * unit, stop * unit)
        return delta if delta.rows(start, stop) is delta else None  # a change of the inputs is every part's own
    except AlgorithmError:
        return None


_ROWLESS = frozenset({"lora_down", "lora_mid", "alpha", "hada_w1_b", "hada_w2_b"})
_BY_ROW = frozenset(
    {"lora_up", "lora_up_bias", "dora_scale", "diff", "diff_b", "set_weight", "set_bias", "hada_w1_a", "hada_w2_a"}
)

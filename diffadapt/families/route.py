"""From the modules of a file to the modules of a pipeline: rows cut apart where the trainer saw a fused projection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from torch import Tensor

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.errors import AlgorithmError
from diffadapt.families.names import Route
from diffadapt.families.shapes import output_rows


def exchanged(tensors: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """The tensors with the halves of their output rows swapped (native shift|scale, Diffusers scale|shift).

    Raises AlgorithmError for tensors whose rows are not the layer's (rotations, Kronecker factors).
    """
    rows = output_rows(tensors)
    changed: dict[str, Tensor] = {}
    for role, tensor in tensors.items():
        if role in _ROWLESS or tensor.ndim == 0 or (role == "dora_scale" and tensor.shape[0] == 1):
            changed[role] = tensor
        elif role in _BY_ROW and rows is not None and rows % 2 == 0 and tensor.shape[0] == rows:
            changed[role] = tensor.roll(rows // 2, 0)
        else:
            raise AlgorithmError(
                f"{module}: the rows of '{role}' {tuple(tensor.shape)} cannot be exchanged, as Diffusers' order of "
                "scale and shift asks. Only low-rank and full differences of this module can be read."
            )
    return changed


def parts(
    route: Route, component: str, delta: Delta, tensors: Mapping[str, Tensor], module: str
) -> Iterator[tuple[TargetKey, Delta]]:
    """The targets of one foreign module and what each gets: the delta itself, or its rows in the order of the route."""
    if len(route.modules) == 1:
        yield TargetKey(component, route.modules[0]), delta
        return
    total, rows = sum(route.shares), output_rows(tensors)
    if rows is None or rows % total:
        raise AlgorithmError(
            f"{module}: a fused projection of {len(route.modules)} parts, whose rows ({rows or 'unknown'}) do not "
            f"divide {':'.join(map(str, route.shares))}. The adapter is for another model."
        )
    stops = [share * (rows // total) for share in accumulate(route.shares)]
    for target, start, stop in zip(route.modules, [0, *stops], stops, strict=False):
        yield TargetKey(component, target), delta.rows(start, stop)


_ROWLESS = frozenset({"lora_down", "lora_mid", "alpha", "hada_w1_b", "hada_w2_b"})
_BY_ROW = frozenset(
    {"lora_up", "lora_up_bias", "dora_scale", "diff", "diff_b", "set_weight", "set_bias", "hada_w1_a", "hada_w2_a"}
)

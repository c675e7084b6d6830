"""Algorithms by name, in the order in which they look at a module's tensors. A new one: its file and a line here."""

from __future__ import annotations

from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import AlgorithmError

ALGORITHMS: tuple[type[Delta], ...] = (LoRA,)

__all__ = ["ALGORITHMS", "Context", "Delta", "TensorGroup", "parse_group"]


def parse_group(group: TensorGroup, context: Context) -> Delta:
    """The delta that the tensors of one module make. Raises AlgorithmError for tensors that nothing explains."""
    found = [delta for algorithm in ALGORITHMS if (delta := algorithm.parse(group, context)) is not None]
    if len(group):
        left = ", ".join(sorted(group.keys.get(role, role) for role in group))
        raise AlgorithmError(f"{group.name}: no algorithm explains {left}.")
    if not found:
        raise AlgorithmError(f"{group.name}: holds no tensors.")
    return found[0]

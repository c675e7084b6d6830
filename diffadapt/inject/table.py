"""A parameter that belongs to no layer (a modulation table, a gate, a padding token), as if it were a weight."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from diffadapt.algorithms.layer import Layer


class Table(nn.Module):
    """A parameter of another module; `weight` is the parameter itself."""

    is_table: ClassVar[bool] = True

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self._owner, self._name = [owner], name  # in a list, which does not make it a child

    @property
    def weight(self) -> Tensor:
        parameter: Tensor = getattr(self._owner[0], self._name)
        return parameter


def tables(model: nn.Module) -> dict[str, Table]:
    """The tables of a model by the path of their parameter."""
    found: dict[str, Table] = {}
    for path, module in model.named_modules():
        if Layer.of(module) is None:
            for name, _ in module.named_parameters(recurse=False):
                found[f"{path}.{name}" if path else name] = Table(module, name)
    return found

"""Parameters that no call of a module's own stands for: those of no layer (a modulation table, a gate, a padding
token), as if they were weights, and the weights of layers that others read instead of calling the layer."""

from __future__ import annotations

from collections.abc import Mapping
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
        own = [name for name, parameter in module._parameters.items() if parameter is not None]
        if own and Layer.of(module) is None:
            found |= {f"{path}.{name}" if path else name: Table(module, name) for name in own}
    return found


_READERS = frozenset({"HunyuanDiTAttentionPool", "MultiheadAttention"})
"""Classes that compute with their Linears' weights and never call them: no hook on such a Linear ever runs."""


def is_called(path: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a model's forward calls the module at this path, so that a hook on it would run."""
    owner = modules.get(path.rpartition(".")[0])
    return not isinstance(modules[path], Table) and type(owner).__name__ not in _READERS

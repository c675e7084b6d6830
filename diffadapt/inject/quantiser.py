"""What has to be known of a library whose packed weights adapters are to work on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn


class Quantiser(ABC):
    """One library's packed weights. `value` is the parameter, wherever it is kept; `module` the one it belongs to."""

    name: ClassVar[str]

    def __deepcopy__(self, memo: dict[int, Any]) -> Quantiser:
        """Quantisers hold nothing: copies of a pipeline have the same."""
        return self

    @abstractmethod
    def owns(self, value: Tensor) -> bool:
        """Whether the parameter is packed by this library now (not one that it has yet to quantise)."""

    @abstractmethod
    def dequantise(self, module: nn.Module, value: Tensor) -> Tensor:
        """A plain tensor of the weight's true shape, as the library's own forward has it; no memory of the module's."""

    @abstractmethod
    def requantise(self, module: nn.Module, value: Tensor, weight: Tensor) -> Tensor:
        """The float32 `weight` packed as `value` is, by the library. Raises MergeError where `refusal` gives a reason;
        whatever the library raises is passed on."""

    def refusal(self, module: nn.Module, value: Tensor) -> str | None:
        """Why the library cannot pack such a weight again, or None."""
        return None

    def parts(self, module: nn.Module, value: Tensor) -> list[Tensor]:
        """The plain tensors that it is made of, the same bits however often the module has run."""
        return inner_tensors(value)

    def take(self, module: nn.Module) -> Tensor:
        """The module's parameter with all that belongs to it, so that `install` can bring it back."""
        return module.weight  # type: ignore[return-value]

    def install(self, module: nn.Module, value: Tensor) -> None:
        """Make `value`, which `take` or `requantise` gave, the module's weight."""
        module._parameters["weight"] = value if isinstance(value, nn.Parameter) else nn.Parameter(value, False)


def inner_tensors(value: Tensor) -> list[Tensor]:
    """The plain tensors inside a tensor subclass, however deep; a plain tensor is its own."""
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None:
        return [value.detach()]
    return [part for name in flatten()[0] for part in inner_tensors(getattr(value, name))]


def class_names(value: Tensor) -> set[str]:
    return {cls.__name__ for cls in type(value).__mro__}

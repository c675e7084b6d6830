"""What PEFT's methods share whose change is a product of two factors and needs no base weight."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.lora import LoRA
from diffadapt.errors import AlgorithmError


def require_linear(algorithm: str, layer: Layer) -> None:
    """Raise AlgorithmError for anything but a Linear, the only kind PEFT trains this method on."""
    if layer.kind != "linear":
        raise AlgorithmError(f"{algorithm}: cannot act on a {layer.kind} layer; PEFT trains it on Linears only.")


def number(group: TensorGroup, config: Mapping[str, Any], field: str, default: float | None = None) -> float:
    """A finite number of the config. Raises AlgorithmError where it is missing (and has no default) or is none."""
    value = config.get(field)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise AlgorithmError(
            f"{group.name}: {field} of adapter_config.json is {value!r}; expected a number, without which these "
            "tensors have no meaning."
        )
    return float(value)


def configured_alpha(group: TensorGroup, context: Context, field: str) -> float:
    """The caller's alpha, or the config's under the method's own name for it."""
    return context.alpha if context.alpha is not None else number(group, context.config, field)


def block_diagonal(blocks: Iterable[Tensor]) -> Tensor:
    """Matrices on the diagonal of a matrix of zeros."""
    joined: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return joined


class Factored(Delta):
    """delta W = scale * up @ down of a Linear, with factors made from the method's own tensors."""

    @property
    @abstractmethod
    def extent(self) -> tuple[int, int] | None:
        """(out, in) of the weight, or None where only the module itself tells."""

    @abstractmethod
    def pair(self, out_features: int, in_features: int) -> LowRank:
        """The float32 factors for a weight (out, in): down (r, in), up (out, r)."""

    def low_rank(self) -> LowRank | None:
        return None if self.extent is None else self.pair(*self.extent)

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.pair(weight.shape[0], weight.shape[1]).dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        return (self.pair(layer.shape[0], layer.shape[1]),)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if self.extent is not None:
            expect_shape(self.algorithm, self.extent, layer)

    def rows(self, start: int, stop: int) -> Delta:
        """The rows as an ordinary LoRA; what made the factors stays behind."""
        pair = self.low_rank()
        if pair is None:
            return super().rows(start, stop)
        return LoRA(pair.down, f32(pair.up)[start:stop], pair.scale * pair.rank)

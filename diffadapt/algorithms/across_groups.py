"""OneTrainer's adapters of depthwise convolutions (Sana's `ff.conv_depth`, Stable Cascade's `depthwise`).

Its pair there is down (r, in, *kernel), which reads the channels of all groups, and up (1, r, 1, 1): as many rows as a
group has outputs. Two things come of that, told apart by the layer, so the delta is made where the layer is known:

- LoRA runs the pair itself and adds its one map to every output channel: y += up(down(x)). No weight of the depthwise
  layer does that, so the pair acts as a side branch and cannot be merged.
- LoHa and DoRA multiply their pairs out and view the numbers in the weight's own shape: (1, in * kernel) has as many as
  (in, 1, *kernel). That is a change of the weight like any other.

Its LoKr and OFT fail there in the trainer's own forward: no file of them was ever trained.
Source: OneTrainer `modules/module/LoRAModule.py` (`create_layer`, `make_weight`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffadapt.algorithms.base import Delta, f32
from diffadapt.algorithms.dora import DoRA
from diffadapt.algorithms.forms import Branch, Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.loha import LoHa
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.rows import Wrapped
from diffadapt.errors import AlgorithmError


def across_groups(delta: Delta, layer: Layer) -> Delta:
    """The delta as it acts on a depthwise convolution where it is one of OneTrainer's; else the delta itself."""
    if layer.kind != "conv" or layer.groups == 1 or layer.shape[0] != layer.groups:
        return delta
    columns = layer.in_features * math.prod(layer.shape[2:])
    if isinstance(delta, LoRA) and _spans(delta, columns):
        return AcrossGroups(delta)
    inner = delta.inner if isinstance(delta, DoRA) else delta
    if not isinstance(inner, (LoRA, LoHa)) or not _spans(inner, columns):
        return delta
    return Regrouped(delta)


def _spans(delta: LoRA | LoHa, columns: int) -> bool:
    """Whether a pair has one row, and reads every channel of all groups."""
    if isinstance(delta, LoHa):
        return delta.t1 is None and delta.w1_a.shape[0] == 1 and delta.w1_b[0].numel() == columns
    return delta.mid is None and delta.up.shape[0] == 1 and delta.down[0].numel() == columns


@dataclass(frozen=True, eq=False)
class OneMap(Branch):
    """up(down(x)) over all channels, the same for every output. down (r, in, *kernel), up (1, r)."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def change(self, x: Tensor, layer: Layer) -> Tensor:
        one = layer.pointwise(layer.apply(x, self.down, groups=1), self.up) * self.scale
        return one.expand(-1, layer.shape[0], *one.shape[2:])


@dataclass(frozen=True, eq=False)
class AcrossGroups(Wrapped):
    """A LoRA that reads the channels of all groups."""

    has_file: ClassVar[bool] = True

    inner: LoRA

    @property
    def live_only(self) -> str | None:
        return (
            "OneTrainer's LoRA of a depthwise convolution mixes the channels that the convolution keeps apart, which "
            "its weight cannot hold"
        )

    def weight_delta(self, weight: Tensor) -> Tensor:
        raise AlgorithmError(f"lora: {self.live_only}.")

    def low_rank(self) -> LowRank | None:
        return None

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        down = f32(self.inner.down).reshape(self.inner.down.shape[0], layer.in_features, *layer.shape[2:])
        return (OneMap(down, f32(self.inner.up).flatten(1), self.inner.scale),)

    def check(self, layer: Layer) -> None:
        """Nothing: `across_groups` has seen the layer."""

    @property
    def seen_by_trainer(self) -> str:
        return "a convolution that is not divided into groups"


@dataclass(frozen=True, eq=False)
class Regrouped(Wrapped):
    """A LoHa or a DoRA whose change has the weight's numbers in another shape: `weight_delta` views them in its own."""

    has_file: ClassVar[bool] = True

    @property
    def _acting(self) -> Delta:
        """The inner delta. The weight has one input column: its one magnitude has the shape of either axis."""
        if isinstance(self.inner, DoRA) and self.inner.magnitude.numel() == 1:
            return dataclasses.replace(self.inner, on_input=True)
        return self.inner

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self._acting.weight_delta(weight)

    def low_rank(self) -> LowRank | None:
        return None

    def check(self, layer: Layer) -> None:
        """Raise AlgorithmError for magnitudes of another layer; `across_groups` has seen the rest."""
        if isinstance(self.inner, DoRA) and self.inner.magnitude.numel() not in (1, layer.shape[0]):
            raise AlgorithmError(
                f"dora: {self.inner.magnitude.numel()} magnitudes for a depthwise convolution of {layer.shape[0]} "
                f"channels; expected {layer.shape[0]}, or 1."
            )

    @property
    def seen_by_trainer(self) -> str:
        return "a weight whose numbers are in another shape"

"""IA3: every input or output channel of a module is multiplied by a learnt factor.

LyCORIS: `weight` (n,), convolutions (1, n, 1...), the factor less one, and `on_input` (scalar, nonzero = inputs); the
bias stays. PEFT: `ia3_l` (out, 1) or (1, in), convolutions (1, n, 1...), the factor itself; on outputs it multiplies
the bias too; modules of the config's `feedforward_modules` scale their inputs.
Sources: arXiv 2205.05638; LyCORIS `modules/ia3.py`; PEFT `tuners/ia3`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.forms import BiasChange, Form, InputChange, OutputChange, Scale
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class IA3(Delta):
    """A factor per channel.

    vector: one number per channel, in the shape of the file. on_input: None where only the module's shape can tell
    (a PEFT convolution without a config). whole: the vector is the factor itself (PEFT), not its excess over one.
    """

    algorithm: ClassVar[str] = "ia3"
    options: ClassVar[Mapping[str, Any]] = {"on_input": False, "peft": False}

    vector: Tensor
    on_input: bool | None
    whole: bool = False

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "ia3_l" in group:
            vector = group.take("ia3_l")
            return cls(vector, _peft_side(group.name, vector, context), whole=True)
        if "on_input" not in group:
            return None
        vector, side = group.take("weight"), group.take("on_input")
        if side.numel() != 1:
            raise AlgorithmError(f"{group.name}: on_input has shape {tuple(side.shape)}; expected one number.")
        return cls(vector, bool(side.item() != 0))

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Factors of one. on_input: of the inputs, not the outputs; peft: PEFT's way, which scales the bias too and
        keeps whole factors, not LyCORIS', which keeps what exceeds one."""
        start.require("ia3")
        on_input, whole = start.option("on_input", False), start.option("peft", False)
        channels = start.layer.in_features if on_input else start.rows
        ones = (1,) * len(start.layer.shape[2:])
        if not whole:
            return cls(torch.zeros(1, channels, *ones) if ones else torch.zeros(channels), on_input)
        shape = (1, channels, *ones) if ones or on_input else (channels, 1)
        return cls(torch.ones(shape), on_input, whole=True)

    def excess(self, like: Tensor | None = None) -> Tensor:
        """(channels,) float32: the factor less one."""
        vector = f32(self.vector, like).flatten()
        return vector - 1 if self.whole else vector

    def _on_input(self, out_features: int) -> bool:
        return self.on_input if self.on_input is not None else self.vector.numel() != out_features

    def weight_delta(self, weight: Tensor) -> Tensor:
        excess, base = self.excess(weight), f32(weight)
        if not self._on_input(weight.shape[0]):
            return base * excess.view(-1, *(1,) * (weight.ndim - 1))
        # A grouped convolution: each group of output rows sees its own slice of the input channels.
        columns = weight.shape[1]
        groups = excess.numel() // columns
        factors = excess.view(groups, 1, columns, *(1,) * (weight.ndim - 2))
        return (base.reshape(groups, -1, *weight.shape[1:]) * factors).reshape(weight.shape)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        if bias is None or not self.whole or self._on_input(bias.shape[0]):
            return None
        return f32(bias) * self.excess(bias)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        scale = Scale(self.excess())
        if self._on_input(layer.out_features):
            return (InputChange(scale),)
        change = self.bias_delta(bias())
        return (OutputChange(scale),) if change is None else (OutputChange(scale), BiasChange(change))

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv"):
            raise AlgorithmError(f"ia3: cannot act on a {layer.kind} layer; expected Linear or Conv.")
        on_input = self._on_input(layer.out_features)
        channels = layer.in_features if on_input else layer.out_features
        if self.vector.numel() != channels:
            side = "inputs" if on_input else "outputs"
            raise AlgorithmError(f"ia3: {self.vector.numel()} factors for a {layer.kind} layer with {channels} {side}.")

    def peft_fields(self, module: str) -> Fields | None:
        """None for LyCORIS' IA3, which leaves the bias as it is, and where the side of the factors is unknown."""
        if not self.whole or self.on_input is None:
            return None
        return {"peft_type": "IA3", "feedforward_modules": [module] if self.on_input else []}

    def tensors(self) -> dict[str, Tensor]:
        if self.whole:
            return {"ia3_l": self.vector}
        return {"weight": self.vector, "on_input": torch.tensor(int(bool(self.on_input)))}

    def rows(self, start: int, stop: int) -> IA3:
        if self.on_input:
            return self
        if self.on_input is None:
            raise AlgorithmError("ia3: without its config it is unknown whether the factors belong to rows.")
        axis = max(range(self.vector.ndim), key=lambda dim: self.vector.shape[dim])
        return dataclasses.replace(self, vector=self.vector.narrow(axis, start, stop - start))


def _peft_side(name: str, vector: Tensor, context: Context) -> bool | None:
    """Whether PEFT's factors act on inputs: by shape on a Linear, by the config's feed-forward patterns elsewhere."""
    if vector.ndim == 2 and vector.shape[0] != vector.shape[1]:
        return vector.shape[0] == 1
    patterns = context.config.get("feedforward_modules")
    if patterns is None:
        return None
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name.endswith(str(pattern)) for pattern in patterns)

"""Full differences and replacements: the change of the weight and bias as they are.

Tensors: `diff` (the weight's shape) and `diff_b` (out,) are added (LyCORIS full, ai-toolkit, ComfyUI's extractions);
`set_weight` and `set_bias` replace (ComfyUI; PEFT's `bias="all"` and `modules_to_save`), so that their change depends
on the base. ai-toolkit's full rank writes `lora_down` alone, in the weight's shape: the difference itself.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.forms import BiasChange, Dense, Form
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class Full(Delta):
    """Changes as dense tensors: of the weight diff or new_weight, of the bias diff_b or new_bias; None = unchanged."""

    algorithm: ClassVar[str] = "full"
    options: ClassVar[Mapping[str, Any]] = {"bias": True}

    diff: Tensor | None = None
    diff_b: Tensor | None = None
    new_weight: Tensor | None = None
    new_bias: Tensor | None = None

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        diff = group.take_optional("diff")
        if diff is None and context.writer == "ai_toolkit" and "lora_down" in group and "lora_up" not in group:
            diff = group.take("lora_down")
        diff_b = group.take_optional("diff_b")
        weight, bias = group.take_optional("set_weight"), group.take_optional("set_bias")
        if diff is None and diff_b is None and weight is None and bias is None:
            return None
        if (diff is not None and weight is not None) or (diff_b is not None and bias is not None):
            raise AlgorithmError(f"{group.name}: holds both a difference and a replacement of one tensor.")
        return cls(diff, diff_b, weight, bias)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Zero differences of the weight and, unless `bias` is off, of a bias that is there."""
        has_bias = start.layer.has_bias and start.option("bias", True)
        return cls(torch.zeros(start.layer.shape), torch.zeros(start.layer.out_features) if has_bias else None)

    @property
    def changes_weight(self) -> bool:
        return self.diff is not None or self.new_weight is not None

    @property
    def shape_alone(self) -> tuple[int, ...] | None:
        return tuple(self.diff.shape) if self.diff is not None else None

    def weight_delta(self, weight: Tensor) -> Tensor:
        if self.diff is not None:
            return f32(self.diff, weight).reshape(weight.shape)
        if self.new_weight is not None:
            return f32(self.new_weight, weight).reshape(weight.shape) - f32(weight)
        return f32(weight).new_zeros(weight.shape)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        if self.diff_b is not None:
            return f32(self.diff_b, bias)
        if self.new_bias is None:
            return None
        new = f32(self.new_bias, bias)
        return new if bias is None else new - f32(bias)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        change = self.bias_delta(bias())
        parts: tuple[Form, ...] = () if change is None else (BiasChange(change),)
        return (Dense(self.weight_delta(weight())), *parts) if self.changes_weight else parts

    def check(self, layer: Layer) -> None:
        seen = self.diff if self.diff is not None else self.new_weight
        # A table may be flat in its trainer's model (Krea 2's modulation): rows mean nothing there.
        rows_fit = seen is None or layer.kind == "table" or seen.shape[0] == layer.shape[0]
        if seen is not None and (not rows_fit or seen.numel() != math.prod(layer.shape)):
            raise AlgorithmError(
                f"{self.algorithm}: the change has shape {tuple(seen.shape)}, the {layer.kind} weight is "
                f"{layer.shape}. The adapter is for another model."
            )
        vector = self.diff_b if self.diff_b is not None else self.new_bias
        if vector is not None and (layer.kind == "embedding" or vector.numel() != layer.out_features):
            raise AlgorithmError(
                f"{self.algorithm}: a bias change of shape {tuple(vector.shape)} does not fit a {layer.kind} layer "
                f"with {layer.out_features} outputs."
            )

    def peft_fields(self, module: str) -> Fields | None:
        """Only whole tensors in place of the model's: PEFT's LN tuning, whatever the module; no differences.

        Beside another method they are its `modules_to_save`.
        """
        return None if self.diff is not None or self.diff_b is not None else {"peft_type": "LN_TUNING"}

    def tensors(self) -> dict[str, Tensor]:
        named = {"diff": self.diff, "diff_b": self.diff_b, "set_weight": self.new_weight, "set_bias": self.new_bias}
        return {role: t for role, t in named.items() if t is not None}

    def rows(self, start: int, stop: int) -> Self:
        return dataclasses.replace(
            self,
            **{
                f.name: None if (t := getattr(self, f.name)) is None else t[start:stop]
                for f in dataclasses.fields(self)
            },
        )

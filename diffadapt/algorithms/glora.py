"""GLoRA, as LyCORIS trains it: delta W = s * (W a + b) with low-rank a (in, in) and b (out, in).

LyCORIS >= 3.0: `a1` (in, r), `a2` (r, in), `b1` (out, r), `b2` (r, in, *kernel), s = alpha / r:
delta W = s * (W a1 a2 + b1 b2). LyCORIS <= 2.x: `a1` (r, in), `a2` (in, r), `b1` (r, in), `b2` (out, r), and its
training forward scaled twice: delta W = s^2 * (W a2 a1 + b2 b1). 1x1 convolutions keep trailing ones.
Sources: GLoRA, arXiv 2306.07967; LyCORIS. PEFT's GLoRA is another method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.forms import Form, InputChange, LowRank, Mix
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class GLoRA(Delta):
    """Shapes as in the module's docstring. first_generation: the layout and the scale of LyCORIS <= 2.x."""

    algorithm: ClassVar[str] = "glora"

    a1: Tensor
    a2: Tensor
    b1: Tensor
    b2: Tensor
    alpha: float
    first_generation: bool = False

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role in group for role in ("a1", "a2", "b1", "b2")):
            return None
        tensors = a1, a2, b1, b2 = tuple(group.take(role) for role in ("a1", "a2", "b1", "b2"))
        if any(t.ndim < 2 for t in tensors):
            raise AlgorithmError(f"{group.name}: the GLoRA factors have shapes {[tuple(t.shape) for t in tensors]}.")
        first = a1.shape[0] < a1.shape[1]
        outer, inner = ((a2, a1), (b2, b1)) if first else ((a1, a2), (b1, b2))
        rank = outer[1].shape[0]
        fits = outer[0].shape[1] == inner[0].shape[1] == inner[1].shape[0] == rank
        if not fits or outer[0].shape[0] != outer[1].shape[1] or inner[1].shape[1] != outer[0].shape[0]:
            shapes = [tuple(t.shape) for t in tensors]
            raise AlgorithmError(f"{group.name}: the GLoRA factors a1, a2, b1, b2 {shapes} do not fit together.")
        return cls(a1, a2, b1, b2, group.take_alpha(rank, context), first)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """a1 and b1: Kaiming's uniform numbers; a2 and b2: zero. As LyCORIS begins."""
        start.require("glora", ungrouped=True)
        start.require_rank("glora")
        rank, columns = start.rank, start.layer.shape[1]
        kernel = start.layer.shape[2:]
        ones = (1,) * len(kernel)
        a1, b1 = start.kaiming(columns, rank, *ones), start.kaiming(start.rows, rank, *ones)
        return cls(a1, torch.zeros(rank, columns, *ones), b1, torch.zeros(rank, columns, *kernel), start.scale_alpha)

    @property
    def rank(self) -> int:
        return int((self.a1 if self.first_generation else self.a2).shape[0])

    @property
    def scale(self) -> float:
        s = self.alpha / self.rank
        return s * s if self.first_generation else s

    @property
    def mix(self) -> tuple[Tensor, Tensor]:
        """The input mixing: up (in, r), down (r, in)."""
        up, down = (self.a2, self.a1) if self.first_generation else (self.a1, self.a2)
        return up.flatten(1), down.flatten(1)

    @property
    def addition(self) -> LowRank:
        """The half that does not need the base weight."""
        up, down = (self.b2, self.b1) if self.first_generation else (self.b1, self.b2)
        return LowRank(down, up.flatten(1), self.scale)

    def weight_delta(self, weight: Tensor) -> Tensor:
        up, down = (f32(t, weight) for t in self.mix)
        mixed = torch.einsum("oi...,ir->or...", f32(weight), up)
        mixed = torch.einsum("or...,rj->oj...", mixed, down)
        return mixed * self.scale + self.addition.dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        up, down = self.mix
        return InputChange(Mix(down, up, self.scale)), self.addition

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv") or layer.groups > 1:
            groups = f" of {layer.groups} groups" if layer.groups > 1 else ""
            raise AlgorithmError(
                f"glora: cannot act on a {layer.kind} layer{groups}; expected Linear or ungrouped Conv."
            )
        pair = self.addition
        expect_shape("glora", (pair.up.shape[0], pair.down[0].numel()), layer)

    def tensors(self) -> dict[str, Tensor]:
        return {"a1": self.a1, "a2": self.a2, "b1": self.b1, "b2": self.b2, "alpha": torch.tensor(self.alpha)}

    def rows(self, start: int, stop: int) -> GLoRA:
        if self.first_generation:
            return dataclasses.replace(self, b2=self.b2[start:stop])
        return dataclasses.replace(self, b1=self.b1[start:stop])

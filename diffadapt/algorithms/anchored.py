"""A LoRA that began at a part of the base weight (PiSSA, OLoRA): delta W = s B A - s B0 A0, with the beginning kept.

PEFT takes the beginning out of the base weight; here the base stays what it is and the beginning stands beside the
factors, with a minus. At the first step the change is nothing, and gradients are those of the factors. A file holds
both pairs as one LoRA of twice the rank, which is right on the untouched base: what PEFT's conversion
(`path_initial_model_for_weight_conversion`) makes. Sources: PiSSA, arXiv 2404.02948; OLoRA, arXiv 2406.01775.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.lora import LoRA


@dataclass(frozen=True, eq=False)
class Anchored(Delta):
    """inner: the pair that is trained; start: the pair that it began at, frozen."""

    algorithm: ClassVar[str] = "lora"
    kept: ClassVar[frozenset[str]] = frozenset({"start"})

    inner: LoRA
    start: LoRA

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        """None: files hold the pair of both."""
        return None

    @property
    def rank(self) -> int:
        return self.inner.rank

    def low_rank(self) -> LowRank:
        ours, theirs = self.inner.low_rank(), self.start.low_rank()
        down = torch.cat([f32(ours.down).flatten(1), f32(theirs.down, ours.down).flatten(1)])
        up = torch.cat([f32(ours.up) * ours.scale, f32(theirs.up, ours.up) * -theirs.scale], dim=1)
        return LowRank(down.reshape(-1, *ours.down.shape[1:]), up)

    @property
    def shape_alone(self) -> tuple[int, ...]:
        return self.inner.shape_alone

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.inner.weight_delta(weight) - self.start.weight_delta(weight)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        theirs = self.start.low_rank()
        return (*self.inner.forms(layer, weight, bias), LowRank(theirs.down, theirs.up, -theirs.scale))

    def check(self, layer: Layer) -> None:
        self.inner.check(layer)

    def settled(self) -> LoRA:
        """One LoRA of twice the rank, whose scale is that of `inner`."""
        ours, theirs = self.inner, self.start
        ratio = theirs.scale / ours.scale
        up = torch.cat([ours.up, theirs.up.reshape(ours.up.shape) * -ratio], dim=1)
        down = torch.cat([ours.down, theirs.down.reshape(ours.down.shape)])
        alpha = ours.alpha * (math.sqrt(2) if ours.rank_stabilised else 2)
        return LoRA(down, up, alpha, bias=ours.bias, rank_stabilised=ours.rank_stabilised)

    def tensors(self) -> dict[str, Tensor]:
        return self.settled().tensors()

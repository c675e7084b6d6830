"""DyLoRA: a LoRA whose leading ranks are all of use, trained a slice at a time. Its file is a LoRA's.

Every forward of the training draws a slice of `unit` ranks. All ranks act, only the slice learns, and the change is
multiplied by sqrt(r / (ranks up to the slice's end)). Sources: DyLoRA, arXiv 2210.07558; sd-scripts
`networks/dylora.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, TensorGroup
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class DyLoRA(LoRA):
    """unit: how many ranks learn in one forward."""

    algorithm: ClassVar[str] = "dylora"
    options: ClassVar[Mapping[str, Any]] = {"unit": 1}

    unit: int = 1

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        """None: nothing tells its file from a LoRA's."""
        return None

    @classmethod
    def fresh(cls, start: Start) -> Self:
        unit = start.option("unit", 1)
        if unit < 1 or start.rank % unit:
            raise AlgorithmError(f"dylora: rank {start.rank} is no multiple of unit {unit}; give one that is.")
        return dataclasses.replace(super().fresh(start), unit=unit)

    def training_forms(
        self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]
    ) -> tuple[Form, ...]:
        # torch's generator, not Python's: a checkpointed forward runs again with torch's state put back.
        first = int(torch.randint(self.rank // self.unit, ())) * self.unit
        last = first + self.unit
        sizes = [first, self.unit, self.rank - last]
        downs, ups = torch.split(self.down, sizes), torch.split(self.up, sizes, dim=1)
        down = torch.cat([downs[0].detach(), downs[1], downs[2].detach()])
        up = torch.cat([ups[0].detach(), ups[1], ups[2].detach()], dim=1)
        return (LowRank(down, up.flatten(1), self.scale * math.sqrt(self.rank / last)),)

    def settled(self) -> LoRA:
        return LoRA(
            self.down, self.up, self.alpha, self.mid, self.bias, self.rank_stabilised, self.embedding, self.transposed
        )

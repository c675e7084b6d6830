"""SHiRA: a few numbers of the weight are trained, the others stay.

`shira_weight` (n,) is added at `shira_indices` (2, n), rows and columns (int32; float32 where Windows saved it).
Sources: SHiRA, arXiv 2406.13175; PEFT `tuners/shira`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import require_linear
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class SHiRA(Delta):
    """values (n,) at places (2, n); repeated places add up.

    counted: the config's r, of n = r (in + out); 0 where it is unknown.
    """

    algorithm: ClassVar[str] = "shira"

    values: Tensor
    places: Tensor
    counted: int = field(default=0, compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "shira_weight" not in group and "shira_indices" not in group:
            return None
        values, places = group.take("shira_weight"), group.take("shira_indices")
        if values.ndim != 1 or tuple(places.shape) != (2, len(values)) or bool((places < 0).any()):
            raise AlgorithmError(
                f"{group.name}: shira_indices {tuple(places.shape)} do not fit shira_weight {tuple(values.shape)}."
            )
        rank = context.config.get("r")
        return cls(values, places, rank if isinstance(rank, int) else 0)

    def weight_delta(self, weight: Tensor) -> Tensor:
        rows, columns = self.places.to(weight.device, torch.int64)
        flat = torch.zeros(weight.shape, device=weight.device)
        return flat.index_put((rows, columns), f32(self.values, weight), accumulate=True)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        top = self.places.amax(1).long().tolist() if len(self.values) else [0, 0]
        if any(place >= size for place, size in zip(top, layer.shape, strict=True)):
            raise AlgorithmError(f"shira: places up to {top} are outside a Linear of {layer.shape}: another model's.")

    def peft_fields(self, module: str) -> Fields | None:
        """None where the rank is unknown that PEFT makes the number of values from."""
        return {"peft_type": "SHIRA", "r": self.counted} if self.counted else None

    def tensors(self) -> dict[str, Tensor]:
        return {"shira_weight": self.values, "shira_indices": self.places}

    def rows(self, start: int, stop: int) -> SHiRA:
        inside = (self.places[0] >= start) & (self.places[0] < stop)
        places = self.places[:, inside].clone()
        places[0] -= start
        return SHiRA(self.values[inside], places)

"""Super-Tuning: a few numbers of the weight are trained, and in Supra a LoRA beside them.

`supertuning_values` (n,) are added at the flat places `supertuning_indices` (n,) int32. Without these
(`save_precomputed_indices=False`) the places are found again: the n largest magnitudes of the base weight, or the
smallest (`select_top=False`), in the order of torch.topk; so the base must be the one of the training, in its dtype.
Supra: `supertuning_lora_A` (r, in), `supertuning_lora_B` (out, r), scaled by lora_alpha / r.
Sources: Super-Tuning, arXiv 2607.09287; PEFT `tuners/supertuning`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import configured_alpha, number, require_linear
from diffadapt.algorithms.forms import Dense, Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class SuperTuning(Delta):
    """values (n,) at flat places (n,), None to find them by magnitude; down (r, in) and up (out, r) of Supra's LoRA.

    sparsity: the config's, of n = (1 - sparsity) out in; None: unknown.
    """

    algorithm: ClassVar[str] = "supertuning"

    values: Tensor
    places: Tensor | None
    largest: bool
    down: Tensor | None = None
    up: Tensor | None = None
    alpha: float = 1.0
    sparsity: float | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        values = group.take_optional("supertuning_values")
        if values is None:
            return None
        places = group.take_optional("supertuning_indices")
        down = up = None
        if "supertuning_lora_A" in group or "supertuning_lora_B" in group:
            down, up = group.take("supertuning_lora_A"), group.take("supertuning_lora_B")
        if (
            values.ndim != 1
            or (places is not None and (places.shape != values.shape or bool((places < 0).any())))
            or (down is not None and up is not None and (down.ndim != 2 or up.ndim != 2 or up.shape[1] != len(down)))
        ):
            raise AlgorithmError(f"{group.name}: the tensors of Super-Tuning do not fit together.")
        config = context.config
        alpha = 1.0 if down is None else configured_alpha(group, context, "lora_alpha")
        sparsity = None if config.get("sparsity") is None else number(group, config, "sparsity")
        return cls(values, places, bool(config.get("select_top", True)), down, up, alpha, sparsity)

    @property
    def rank(self) -> int | None:
        return None if self.down is None else int(self.down.shape[0])

    def lora(self) -> LowRank | None:
        """Supra's pair."""
        if self.down is None or self.up is None:
            return None
        return LowRank(self.down, self.up, self.alpha / len(self.down))

    def sparse(self, weight: Tensor) -> Tensor:
        """The trained numbers in a float32 matrix of zeros."""
        places = self.places
        if places is None:
            # In the weight's own dtype: rounding decides which magnitudes are equal.
            places = weight.detach().abs().flatten().topk(len(self.values), largest=self.largest).indices
        flat = torch.zeros(weight.numel(), device=weight.device)
        places = places.to(weight.device, torch.int64)
        return flat.scatter_add(0, places, f32(self.values, weight)).reshape(weight.shape)

    def weight_delta(self, weight: Tensor) -> Tensor:
        pair, delta = self.lora(), self.sparse(weight)
        return delta if pair is None else delta + pair.dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        pair, sparse = self.lora(), Dense(self.sparse(weight()))
        return (sparse,) if pair is None else (sparse, pair)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        size = layer.shape[0] * layer.shape[1]
        top = int(self.places.max()) if self.places is not None and len(self.values) else len(self.values) - 1
        pair = self.lora()
        if top >= size or (pair is not None and (pair.up.shape[0], pair.down.shape[1]) != layer.shape):
            raise AlgorithmError(f"supertuning: does not fit a Linear of {layer.shape}. It is for another model.")

    def peft_fields(self, module: str) -> Fields | None:
        """None where the sparsity is unknown that PEFT makes the number of values from."""
        if self.sparsity is None:
            return None
        pair = {} if self.down is None else {"r": self.rank, "lora_alpha": self.alpha}
        return {
            "peft_type": "SUPERTUNING", "sparsity": self.sparsity, "select_top": self.largest,
            "save_precomputed_indices": self.places is not None, **pair,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        named = {
            "supertuning_values": self.values, "supertuning_indices": self.places,
            "supertuning_lora_A": self.down, "supertuning_lora_B": self.up,
        }  # fmt: skip
        return {role: t for role, t in named.items() if t is not None}

    def rows(self, start: int, stop: int) -> Delta:
        if self.places is None:
            raise AlgorithmError("supertuning: its places depend on all rows of the fused weight.")
        if self.down is None:
            raise AlgorithmError("supertuning: flat places cannot be cut by rows without the weight's width.")
        columns = self.down.shape[1]
        inside = (self.places >= start * columns) & (self.places < stop * columns)
        up = None if self.up is None else self.up[start:stop]
        places = self.places[inside] - start * columns
        return dataclasses.replace(self, values=self.values[inside], places=places, up=up, sparsity=None)

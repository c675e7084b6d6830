"""UniLoRA: every number of both factors of a LoRA is one of a few trained numbers, scaled.

For the whole model `unilora_theta_d` (d,); per module `unilora_indices_A` (r, in), `unilora_indices_B` (out, r), which
of them each number is, and `unilora_scales_A`, `unilora_scales_B` of the same shapes, one over the root of how often it
is used. delta W = B A with A = theta[indices_A] * scales_A.
The indices are saved with `save_indices=True` only; without them a file names no module at all.
Sources: UniLoRA, arXiv 2506.00799; PEFT `tuners/unilora`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.base import Context, TensorGroup, f32
from diffadapt.algorithms.factored import Factored
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_ROLES = ("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B")


@dataclass(frozen=True, eq=False)
class UniLoRA(Factored):
    """indices and scales of the factors: A (r, in), B (out, r)."""

    algorithm: ClassVar[str] = "unilora"
    kept: ClassVar[frozenset[str]] = frozenset()  # the shared vector is what is trained

    indices_a: Tensor
    indices_b: Tensor
    scales_a: Tensor
    scales_b: Tensor
    bank: Bank

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role in group for role in _ROLES):
            return None
        tensors = [group.take(role) for role in _ROLES]
        theta = context.bank.tensors.get("unilora_theta_d")
        a, b, scales_a, scales_b = tensors
        if theta is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or not a.numel() * b.numel():
            raise AlgorithmError(f"{group.name}: unilora's indices do not make a pair, or unilora_theta_d is missing.")
        highest, lowest = max(int(a.max()), int(b.max())), min(int(a.min()), int(b.min()))
        if a.shape != scales_a.shape or b.shape != scales_b.shape or lowest < 0 or highest >= len(theta):
            raise AlgorithmError(f"{group.name}: unilora's indices, scales and {len(theta)} numbers do not fit.")
        return cls(a, b, scales_a, scales_b, context.bank)

    @property
    def rank(self) -> int:
        return int(self.indices_a.shape[0])

    @property
    def extent(self) -> tuple[int, int]:
        return int(self.indices_b.shape[0]), int(self.indices_a.shape[1])

    def pair(self, out_features: int, in_features: int) -> LowRank:
        theta = f32(self.bank.tensors["unilora_theta_d"], self.indices_a)
        down = theta[self.indices_a.long()] * f32(self.scales_a)
        return LowRank(down, theta[self.indices_b.long()] * f32(self.scales_b))

    @property
    def bank_tensors(self) -> Mapping[str, Tensor]:
        return {"unilora_theta_d": self.bank.tensors["unilora_theta_d"]}

    def peft_fields(self, module: str) -> Fields | None:
        length = len(self.bank.tensors["unilora_theta_d"])
        return {"peft_type": "UNILORA", "r": self.rank, "theta_d_length": length, "save_indices": True}

    def tensors(self) -> dict[str, Tensor]:
        """The module's own; the trained numbers are the file's."""
        return dict(zip(_ROLES, (self.indices_a, self.indices_b, self.scales_a, self.scales_b), strict=True))

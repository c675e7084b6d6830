"""DeLoRA: a LoRA with normalised factors and one trained strength, as wide as the base weight's columns.

`delora_A` (r, in), `delora_B` (out, r), `delora_lambda` (1,), `delora_w_norm` (in,), the norms of the base weight's
columns when training began. delta W = B diag(lambda / (r max(|A_i|, 1e-4) max(|B_i|, 1e-4))) A * w_norm, with rows A_i,
columns B_i. Sources: DeLoRA, arXiv 2503.18225; PEFT `tuners/delora`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from diffadapt.algorithms.base import Context, TensorGroup, f32
from diffadapt.algorithms.factored import Factored
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_LEAST = 1e-4


@dataclass(frozen=True, eq=False)
class DeLoRA(Factored):
    """down (r, in), up (out, r), strength (1,), norms (in,)."""

    algorithm: ClassVar[str] = "delora"

    down: Tensor
    up: Tensor
    strength: Tensor
    norms: Tensor

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role.startswith("delora_") for role in group):
            return None
        down, up = group.take("delora_A"), group.take("delora_B")
        strength, norms = group.take("delora_lambda"), group.take("delora_w_norm")
        if (
            down.ndim != 2
            or up.ndim != 2
            or up.shape[1] != len(down)
            or norms.shape != down.shape[1:]
            or strength.numel() != 1
        ):
            raise AlgorithmError(
                f"{group.name}: delora_A {tuple(down.shape)}, delora_B {tuple(up.shape)}, delora_lambda "
                f"{tuple(strength.shape)} and delora_w_norm {tuple(norms.shape)} do not fit together; expected "
                "(r, in), (out, r), (1,) and (in,)."
            )
        return cls(down, up, strength, norms)

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def extent(self) -> tuple[int, int]:
        return int(self.up.shape[0]), int(self.down.shape[1])

    def pair(self, out_features: int, in_features: int) -> LowRank:
        down, up = f32(self.down), f32(self.up)
        sizes = down.norm(dim=1).clamp(min=_LEAST) * up.norm(dim=0).clamp(min=_LEAST)
        return LowRank(down * f32(self.norms), up * (f32(self.strength) / self.rank / sizes))

    def peft_fields(self, module: str) -> Fields | None:
        return {"peft_type": "DELORA", "r": self.rank}

    def tensors(self) -> dict[str, Tensor]:
        return {
            "delora_A": self.down, "delora_B": self.up, "delora_lambda": self.strength, "delora_w_norm": self.norms,
        }  # fmt: skip

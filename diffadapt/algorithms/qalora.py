"""QALoRA: a LoRA of PEFT on inputs averaged in groups.

`lora_down` A (r, in / g), `lora_up` B (out, r), g = the config's `qalora_group_size`. PEFT averages every g inputs and
multiplies by in / g, so delta W = s (in / g^2) B repeat(A, each column g times), s as in LoRA. PEFT trains it on GPTQ
weights and merges nothing. Sources: QA-LoRA, arXiv 2309.14717; PEFT `tuners/lora/variants.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, TensorGroup, f32
from diffadapt.algorithms.factored import Factored
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.lora import LoRA
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class QALoRA(Factored):
    """down (r, in / g), up (out, r). size: g."""

    algorithm: ClassVar[str] = "qalora"

    down: Tensor
    up: Tensor
    alpha: float
    size: int
    stabilised: bool

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        config = context.config
        if not config.get("use_qalora") or ("lora_down" not in group and "lora_up" not in group):
            return None
        size = config.get("qalora_group_size")
        if not isinstance(size, int) or size < 1:
            raise AlgorithmError(f"{group.name}: QALoRA needs qalora_group_size of adapter_config.json, not {size!r}.")
        plain = LoRA.parse(group, context)
        if plain is None or plain.down.ndim != 2 or plain.bias is not None or plain.mid is not None:
            raise AlgorithmError(f"{group.name}: QALoRA is a pair (r, in / g), (out, r) without bias; this is not.")
        return cls(plain.down, plain.up, plain.alpha, size, plain.rank_stabilised)

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def extent(self) -> tuple[int, int]:
        return int(self.up.shape[0]), int(self.down.shape[1] * self.size)

    def pair(self, out_features: int, in_features: int) -> LowRank:
        scale = self.alpha / (self.rank**0.5 if self.stabilised else self.rank)
        down = f32(self.down).repeat_interleave(self.size, dim=1)
        return LowRank(down, self.up, scale * self.down.shape[1] / self.size)

    def peft_fields(self, module: str) -> Fields | None:
        return {
            "peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "use_rslora": self.stabilised,
            "lora_bias": False, "use_dora": False, "use_qalora": True, "qalora_group_size": self.size,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The factors; the group size is the config's."""
        return {"lora_down": self.down, "lora_up": self.up, "alpha": torch.tensor(self.alpha)}

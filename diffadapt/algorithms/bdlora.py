"""BD-LoRA: a LoRA of PEFT with one block-diagonal factor.

`lora_down` (r, in / n) or `lora_up` (out, r / n) is n row chunks that stand on the diagonal of the real factor. Which
of both it is, if any, the config's `use_bdlora` decides by the module's name: `target_modules_bd_a`,
`target_modules_bd_b`; n is its `nblocks`. Then an ordinary LoRA. Source: PEFT `tuners/lora/variants.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, TensorGroup, f32
from diffadapt.algorithms.factored import Factored, block_diagonal, number
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class BlockLoRA(Factored):
    """down (r, in) or (r, in / n), up (out, r) or (out, r / n). blocks: n; short_up: which of both is short."""

    algorithm: ClassVar[str] = "bdlora"

    down: Tensor
    up: Tensor
    alpha: float
    blocks: int
    short_up: bool
    stabilised: bool

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        options = context.config.get("use_bdlora")
        if not isinstance(options, Mapping) or ("lora_down" not in group and "lora_up" not in group):
            return None
        name, blocks = group.name.rpartition(".")[2], int(number(group, options, "nblocks", 1))
        short_down, short_up = (_named(name, options.get(f"target_modules_bd_{side}")) for side in ("a", "b"))
        if blocks <= 1 or not (short_down or short_up):
            return None
        down, up = group.take("lora_down"), group.take("lora_up")
        rank = len(down)
        width = rank // blocks if short_up else rank
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != width or (up if short_up else down).shape[0] % blocks:
            raise AlgorithmError(
                f"{group.name}: lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} are no LoRA in {blocks} blocks."
            )
        alpha = group.take_alpha(rank, context)
        return cls(down, up, alpha, blocks, short_up, bool(context.config.get("use_rslora")))

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def extent(self) -> tuple[int, int]:
        return int(self.up.shape[0]), int(self.down.shape[1] * (1 if self.short_up else self.blocks))

    def pair(self, out_features: int, in_features: int) -> LowRank:
        down, up = f32(self.down), f32(self.up)
        if self.short_up:
            up = block_diagonal(up.chunk(self.blocks))
        else:
            down = block_diagonal(down.chunk(self.blocks))
        return LowRank(down, up, self.alpha / (self.rank**0.5 if self.stabilised else self.rank))

    def peft_fields(self, module: str) -> Fields | None:
        short, full = ("b", "a") if self.short_up else ("a", "b")
        blocks = {
            f"target_modules_bd_{short}": [module.rpartition(".")[2]], f"target_modules_bd_{full}": [],
            "nblocks": self.blocks, "match_strict": False,
        }  # fmt: skip
        return {
            "peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "use_rslora": self.stabilised,
            "lora_bias": False, "use_dora": False, "use_bdlora": blocks,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The factors; `use_bdlora` is the config's."""
        return {"lora_down": self.down, "lora_up": self.up, "alpha": torch.tensor(self.alpha)}


def _named(name: str, patterns: Any) -> bool:
    return any(isinstance(pattern, str) and pattern in name for pattern in patterns or ())

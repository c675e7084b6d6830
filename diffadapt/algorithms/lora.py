"""LoRA and LoCon: delta W = (alpha / rank) * up @ down, with an optional Tucker core and bias.

Tensors (Kohya / PEFT names): `lora_down` = lora_A (r, in[/groups], *kernel), `lora_up` = lora_B (out, r[, 1...]),
`lora_mid` (r, r, *kernel) for LyCORIS' Tucker form, `alpha` (scalar), `lora_up_bias` = lora_B.bias (out,).
rsLoRA (PEFT `use_rslora`): alpha / sqrt(rank). Sources: LoRA, arXiv 2106.09685; LoCon and Tucker, LyCORIS;
rsLoRA, arXiv 2312.03732. LoRA-FA and sd-scripts' DyLoRA write the same file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class LoRA(Delta):
    """A low-rank pair, its scale folded into one number."""

    algorithm: ClassVar[str] = "lora"

    down: Tensor
    up: Tensor
    alpha: float
    mid: Tensor | None = None
    bias: Tensor | None = None
    rank_stabilised: bool = False

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "lora_down" not in group and "lora_up" not in group:
            return None
        down, up = group.take("lora_down"), group.take("lora_up")
        mid, bias = group.take_optional("lora_mid"), group.take_optional("lora_up_bias")
        rank = down.shape[0] if down.ndim > 1 else 0
        if down.ndim < 2 or up.ndim < 2 or up.shape[1] != rank or math.prod(up.shape[2:]) != 1:
            raise AlgorithmError(
                f"{group.name}: lora_down {tuple(down.shape)} and lora_up {tuple(up.shape)} do not make a pair; "
                "expected (rank, in, ...) and (out, rank)."
            )
        if mid is not None and tuple(mid.shape[:2]) != (rank, rank):
            raise AlgorithmError(f"{group.name}: lora_mid {tuple(mid.shape)} does not fit rank {rank}.")
        alpha = group.take_alpha(rank, context)
        return cls(down, up, alpha, mid, bias, bool(context.config.get("use_rslora")))

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank) if self.rank else 0.0

    def low_rank(self) -> LowRank:
        up = self.up.flatten(1)
        if self.mid is None:
            return LowRank(self.down, up, self.scale)
        # T[a, b, *k] A[b, i] -> (r, i, *k): the Tucker core and the 1x1 down are one ordinary convolution.
        core = torch.einsum("ab...,bi->ai...", f32(self.mid), f32(self.down).flatten(1))
        return LowRank(core, up, self.scale)

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.low_rank().dense(tuple(weight.shape), weight.device)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        return None if self.bias is None else f32(self.bias, bias) * self.scale

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv"):
            raise AlgorithmError(f"lora: cannot act on a {layer.kind} layer; expected Linear or Conv.")
        columns = math.prod((self.down if self.mid is None else self.mid).shape[2:]) * self.down.shape[1]
        expect_shape("lora", (self.up.shape[0], columns), layer)

    def tensors(self) -> dict[str, Tensor]:
        named = {"lora_down": self.down, "lora_up": self.up, "lora_mid": self.mid, "lora_up_bias": self.bias}
        return {role: t for role, t in named.items() if t is not None} | {"alpha": torch.tensor(self.alpha)}

    def rows(self, start: int, stop: int) -> LoRA:
        bias = None if self.bias is None else self.bias[start:stop]
        return LoRA(self.down, self.up[start:stop], self.alpha, self.mid, bias, self.rank_stabilised)

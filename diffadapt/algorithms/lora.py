"""LoRA and LoCon: delta W = (alpha / rank) * up @ down, with an optional Tucker core and bias.

Tensors (Kohya / PEFT names): `lora_down` = lora_A (r, in[/groups], *kernel), `lora_up` = lora_B (out, r[, 1...]),
`lora_mid` (r, r, *kernel) for LyCORIS' Tucker form, `alpha` (scalar), `lora_up_bias` = lora_B.bias (out,); on
embeddings PEFT's `lora_embedding_A` (r, num) and `lora_embedding_B` (dim, r).
rsLoRA (PEFT `use_rslora`): alpha / sqrt(rank). Sources: LoRA, arXiv 2106.09685; LoCon and Tucker, LyCORIS;
rsLoRA, arXiv 2312.03732. LoRA-FA and DyLoRA (sd-scripts, LyCORIS) write the same file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class LoRA(Delta):
    """A low-rank pair, its scale folded into one number.

    down (r, in[/groups], *kernel), up (out, r[, 1...]), mid (r, r, *kernel), bias (out,); embedding: down (r, num),
    up (dim, r). alpha: in the units of the file, the scale is alpha / rank (rank_stabilised: alpha / sqrt(rank)).
    transposed: the weight is stored (in, out), as an Embedding's and a transformers `Conv1D`'s is.
    """

    algorithm: ClassVar[str] = "lora"
    options: ClassVar[Mapping[str, Any]] = {"tucker": False, "rank_stabilised": False}

    down: Tensor
    up: Tensor
    alpha: float
    mid: Tensor | None = None
    bias: Tensor | None = None
    rank_stabilised: bool = False
    embedding: bool = False
    transposed: bool = False

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "lora_down" in group or "lora_up" in group:
            embedding, roles = False, ("lora_down", "lora_up")
        elif "lora_embedding_A" in group or "lora_embedding_B" in group:
            embedding, roles = True, ("lora_embedding_A", "lora_embedding_B")
        else:
            return None
        down, up = group.take(roles[0]), group.take(roles[1])
        mid, bias = group.take_optional("lora_mid"), group.take_optional("lora_up_bias")
        rank = down.shape[0] if down.ndim > 1 else 0
        if context.writer == "peft" and down.ndim > 2 and up.ndim > 2 and 0 < up.shape[1] < rank and not embedding:
            raise AlgorithmError(
                f"{group.name}: PEFT's LoRA of a grouped convolution ({tuple(down.shape)}, {tuple(up.shape)}) sees the "
                "inputs of all groups, so it is no change of the grouped weight; PEFT itself cannot merge it."
            )
        if down.ndim < 2 or up.ndim < 2 or up.shape[1] != rank or up.numel() != up.shape[0] * rank:
            raise AlgorithmError(
                f"{group.name}: {roles[0]} {tuple(down.shape)} and {roles[1]} {tuple(up.shape)} do not make a pair; "
                "expected (rank, in, ...) and (out, rank)."
            )
        if mid is not None and (tuple(mid.shape[:2]) != (rank, rank) or down.numel() != rank * down.shape[1]):
            raise AlgorithmError(
                f"{group.name}: lora_mid {tuple(mid.shape)} does not fit lora_down {tuple(down.shape)}; expected "
                "(rank, rank, *kernel) and (rank, in, 1, ...)."
            )
        _check_shape(group, up, down)
        split = _split_blocks(group.peek("alpha"), up, context)
        alpha = group.take_alpha(rank, context) * split
        config = context.config
        stabilised = bool(config.get("use_rslora"))
        return cls(down, up, alpha, mid, bias, stabilised, embedding, embedding or bool(config.get("fan_in_fan_out")))

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """down: Kaiming's uniform numbers; up: zero. tucker: a core between 1 x 1 factors, for kernels. As all do."""
        layer, rank = start.layer, start.rank
        stabilised = start.option("rank_stabilised", False)
        if layer.kind == "embedding":
            start.require_rank("lora")
            rows, width = layer.shape
            down, up = torch.zeros(rank, rows), start.normal(1.0, width, rank)
            return cls(down, up, start.scale_alpha, None, None, stabilised, embedding=True, transposed=True)
        start.require("lora")
        start.require_rank("lora")
        kernel = layer.shape[2:]
        ones = (1,) * len(kernel)
        tucker = start.option("tucker", False) and math.prod(kernel) > 1
        down = start.kaiming(rank, layer.shape[1], *(ones if tucker else kernel))
        mid = start.kaiming(rank, rank, *kernel) if tucker else None
        return cls(down, torch.zeros(layer.shape[0], rank, *ones), start.scale_alpha, mid, None, stabilised)

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

    @property
    def shape_alone(self) -> tuple[int, ...]:
        shape = (self.up.shape[0], *(self.down if self.mid is None else self.mid).shape[2:])
        columns = self.down.shape[1]
        return (columns, shape[0]) if self.transposed else (shape[0], columns, *shape[1:])

    def weight_delta(self, weight: Tensor) -> Tensor:
        shape = tuple(weight.shape)
        if not self.transposed:
            return self.low_rank().dense(shape, weight.device)
        return self.low_rank().dense((shape[1], shape[0]), weight.device).T

    def row_products(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        pair = self.low_rank()
        down, up = f32(pair.down, weight).flatten(1), f32(pair.up, weight)
        crossed = ((f32(weight).flatten(1) @ down.T) * up).sum(1) * pair.scale
        return crossed, ((up @ (down @ down.T)) * up).sum(1) * pair.scale**2

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        return None if self.bias is None else f32(self.bias, bias) * self.scale

    def check(self, layer: Layer) -> None:
        if layer.kind not in (("embedding",) if self.embedding else ("linear", "conv")):
            expected = "an Embedding" if self.embedding else "Linear or Conv"
            raise AlgorithmError(f"lora: cannot act on a {layer.kind} layer; expected {expected}.")
        columns = math.prod((self.down if self.mid is None else self.mid).shape[2:]) * self.down.shape[1]
        seen = (columns, self.up.shape[0]) if self.embedding else (self.up.shape[0], columns)
        expect_shape("lora", seen, layer)
        if self.bias is not None and self.bias.numel() != layer.out_features:
            raise AlgorithmError(f"lora: its bias has {self.bias.numel()} numbers, the layer {layer.out_features}.")

    def peft_fields(self, module: str) -> Fields | None:
        """None for a Tucker core, which PEFT's LoRA has not."""
        if self.mid is not None:
            return None
        turned = {"fan_in_fan_out": True} if self.transposed and not self.embedding else {}
        return {
            "peft_type": "LORA", "r": self.rank, "lora_alpha": self.alpha, "use_rslora": self.rank_stabilised,
            "lora_bias": self.bias is not None, "use_dora": False, **turned,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        names = ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_down", "lora_up")
        named = {names[0]: self.down, names[1]: self.up, "lora_mid": self.mid, "lora_up_bias": self.bias}
        return {role: t for role, t in named.items() if t is not None} | {"alpha": torch.tensor(self.alpha)}

    def rows(self, start: int, stop: int) -> LoRA:
        bias = None if self.bias is None else self.bias[start:stop]
        return dataclasses.replace(self, up=self.up[start:stop], bias=bias)


def _check_shape(group: TensorGroup, up: Tensor, down: Tensor) -> None:
    """Take ComfyUI's `reshape_weight`: the weight's shape once it is padded for the pair, which the pair says too.

    Raises AlgorithmError where it says something else.
    """
    told = group.take_optional("reshape_weight")
    shape = (up.shape[0], *down.shape[1:])
    if told is not None and tuple(told.flatten().tolist()) != shape:
        raise AlgorithmError(f"{group.name}: reshape_weight says {told.flatten().tolist()}, its pair makes {shape}.")


def _split_blocks(alpha: Tensor | None, up: Tensor, context: Context) -> int:
    """How many separate pairs sd-scripts' `split_qkv` joined into this one, each of which alpha was meant for.

    It trains n pairs of rank r with alpha / r and saves the stacked down, a block-diagonal up and the same alpha, so
    that alpha / rows(down) is n times too small. Blocks: q, k, v, and in Flux's single blocks the MLP of 4 times their
    size. Source: sd-scripts `networks/lora_flux.py`.
    """
    if alpha is None or context.alpha is not None or "split_qkv" not in context.metadata.get("ss_network_args", ""):
        return 1
    rows, columns = up.shape[:2]
    for sizes in ((1, 1, 1), (1, 1, 1, 4)):
        unit, rest = divmod(rows, sum(sizes))
        rank, left = divmod(columns, len(sizes))
        if rest or left or not rank:
            continue
        outside = torch.ones(rows, columns, dtype=torch.bool, device=up.device)
        top = 0
        for block, size in enumerate(sizes):
            outside[top : top + unit * size, block * rank : (block + 1) * rank] = False
            top += unit * size
        if not bool(up.flatten(1)[outside].any()):
            return len(sizes)
    return 1

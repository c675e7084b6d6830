"""MiSS and Bone: one small block, repeated over the weight.

`miss_block` (`bone_block` of PEFT <= 0.17), by the config's `init_weights`:
(r, out): W[o, c] += M[c mod r, o], where r need not divide in; "mini": (r, mini_r), the block repeated along the
outputs first; "bat": (out / r, r, r), and each r x r tile T_ij of the weight becomes T_ij + T_ij B_i + B_i.
There is no scale. Sources: MiSS, arXiv 2409.15371 (whose first versions were named Bone); PEFT `tuners/miss`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import Factored, require_linear
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_TYPES = {"miss_block": "MISS", "bone_block": "BONE"}
_ROLES = tuple(_TYPES)


@dataclass(frozen=True, eq=False)
class MiSS(Factored):
    """block: (r, out), or (r, part of out), which is repeated (mini). role: its name in the file."""

    algorithm: ClassVar[str] = "miss"

    block: Tensor
    role: str
    mini: bool = field(default=False, compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        role = next((role for role in _ROLES if role in group), None)
        if role is None or (block := group.peek(role)) is None or block.ndim == 3:
            return None
        block = group.take(role)
        if block.ndim != 2 or 0 in block.shape:
            raise AlgorithmError(f"{group.name}: {role} {tuple(block.shape)}; expected (r, out) or (out / r, r, r).")
        return cls(block, role, context.config.get("init_weights") == "mini")

    @property
    def rank(self) -> int:
        return int(self.block.shape[0])

    @property
    def extent(self) -> None:
        return None

    def pair(self, out_features: int, in_features: int) -> LowRank:
        """down sums the inputs whose number is the same modulo r."""
        down = torch.eye(self.rank, device=self.block.device).repeat(1, -(-in_features // self.rank))[:, :in_features]
        return LowRank(down, f32(self.block).repeat(1, out_features // self.block.shape[1]).T)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if layer.shape[0] % self.block.shape[1] or self.rank > layer.shape[1]:
            raise AlgorithmError(
                f"miss: {self.role} {tuple(self.block.shape)} does not fit a Linear of {layer.shape}. "
                "The adapter is for another model."
            )

    def peft_fields(self, module: str) -> Fields | None:
        """MISS; BONE where the tensor has that name, which PEFT has not read since 0.17."""
        sizes = {"init_weights": "mini", "mini_r": int(self.block.shape[1])} if self.mini else {"init_weights": True}
        return {"peft_type": _TYPES[self.role], "r": self.rank, **sizes}

    def tensors(self) -> dict[str, Tensor]:
        return {self.role: self.block}


@dataclass(frozen=True, eq=False)
class BatMiSS(Delta):
    """blocks: (out / r, r, r), of `init_weights="bat"`."""

    algorithm: ClassVar[str] = "miss_bat"

    blocks: Tensor
    role: str

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        role = next((role for role in _ROLES if role in group), None)
        if role is None or (blocks := group.peek(role)) is None or blocks.ndim != 3:
            return None
        if blocks.shape[1] != blocks.shape[2]:
            raise AlgorithmError(f"{group.name}: {role} {tuple(blocks.shape)}; expected (out / r, r, r).")
        return cls(group.take(role), role)

    @property
    def rank(self) -> int:
        return int(self.blocks.shape[1])

    def weight_delta(self, weight: Tensor) -> Tensor:
        high, r, _ = self.blocks.shape
        blocks = f32(self.blocks, weight)
        tiles = f32(weight).reshape(high, r, weight.shape[1] // r, r)
        return (torch.einsum("iajb,ibc->iajc", tiles, blocks) + blocks[:, :, None, :]).reshape(weight.shape)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if layer.shape[0] != self.blocks.shape[0] * self.rank or layer.shape[1] % self.rank:
            raise AlgorithmError(
                f"miss_bat: {self.role} {tuple(self.blocks.shape)} does not fit a Linear of {layer.shape}. "
                "The adapter is for another model."
            )

    def peft_fields(self, module: str) -> Fields | None:
        return {"peft_type": _TYPES[self.role], "r": self.rank, "init_weights": "bat"}

    def tensors(self) -> dict[str, Tensor]:
        return {self.role: self.blocks}

    def rows(self, start: int, stop: int) -> BatMiSS:
        if start % self.rank or stop % self.rank:
            raise AlgorithmError(f"miss_bat: rows {start} to {stop} cut a block of {self.rank}.")
        return BatMiSS(self.blocks[start // self.rank : stop // self.rank], self.role)

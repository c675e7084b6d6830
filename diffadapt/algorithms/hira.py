"""HiRA: the weight times a low-rank matrix, delta W = W * (B A), elementwise.

`hira_A` (r, in, *kernel), `hira_B` (out, r[, 1...]); embeddings `hira_embedding_A` (r, num), `hira_embedding_B`
(dim, r), transposed. There is no scale. Sources: HiRA, ICLR 2025 (openreview TwJrTz9cRS); PEFT `tuners/hira`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_ROLES = {False: ("hira_A", "hira_B"), True: ("hira_embedding_A", "hira_embedding_B")}


@dataclass(frozen=True, eq=False)
class HiRA(Delta):
    """down (r, in, *kernel), up (out, r[, 1...]); embedding: down (r, num), up (dim, r)."""

    algorithm: ClassVar[str] = "hira"

    down: Tensor
    up: Tensor
    embedding: bool = False

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        embedding = any(role in group for role in _ROLES[True])
        roles = _ROLES[embedding]
        if not any(role in group for role in roles):
            return None
        down, up = group.take(roles[0]), group.take(roles[1])
        if down.ndim < 2 or up.ndim < 2 or up.shape[1] != len(down) or up.numel() != len(up) * len(down):
            raise AlgorithmError(
                f"{group.name}: {roles[0]} {tuple(down.shape)} and {roles[1]} {tuple(up.shape)} do not make a pair; "
                "expected (r, in, ...) and (out, r)."
            )
        return cls(down, up, embedding)

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    def weight_delta(self, weight: Tensor) -> Tensor:
        factor = f32(self.up, weight).flatten(1) @ f32(self.down, weight).flatten(1)
        return f32(weight) * (factor.T if self.embedding else factor.reshape(weight.shape))

    def check(self, layer: Layer) -> None:
        if layer.kind not in (("embedding",) if self.embedding else ("linear", "conv")) or layer.groups != 1:
            raise AlgorithmError(f"hira: cannot act on a {layer.kind} layer of {layer.groups} groups.")
        size = (self.up.shape[0], math.prod(self.down.shape[1:]))
        expect_shape(self.algorithm, size[::-1] if self.embedding else size, layer)

    def peft_fields(self, module: str) -> Fields | None:
        return {"peft_type": "HIRA", "r": self.rank}

    def tensors(self) -> dict[str, Tensor]:
        return dict(zip(_ROLES[self.embedding], (self.down, self.up), strict=True))

    def rows(self, start: int, stop: int) -> HiRA:
        return dataclasses.replace(self, up=self.up[start:stop])

"""BEFT: the bias alone is trained.

`beft_bias` (1, out) is added to the bias, also where the Linear has none. Sources: BEFT, arXiv 2509.15974; PEFT
`tuners/beft`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from diffadapt.algorithms.base import Context, TensorGroup, f32
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.peft_fields import Fields


@dataclass(frozen=True, eq=False)
class BEFT(Full):
    """A bias difference (1, out), in `diff_b`."""

    algorithm: ClassVar[str] = "beft"

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        vector = group.take_optional("beft_bias")
        return None if vector is None else cls(diff_b=vector)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        return None if self.diff_b is None else f32(self.diff_b, bias).flatten()

    def peft_fields(self, module: str) -> Fields | None:
        return {"peft_type": "BEFT"}

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.diff_b is None else {"beft_bias": self.diff_b}

    def rows(self, start: int, stop: int) -> Self:
        return dataclasses.replace(self, diff_b=None if self.diff_b is None else self.diff_b[:, start:stop])

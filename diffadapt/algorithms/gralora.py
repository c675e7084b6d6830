"""GraLoRA: the weight in k x k blocks, each with a low-rank change of its own.

`gralora_A` (k, in / k, r), `gralora_B` (k, r, out / k), and with `hybrid_r` an ordinary LoRA beside them,
`gralora_A_general` (h, in), `gralora_B_general` (out, h). The change of the block at outputs j, inputs n is
(A_n[:, j-th r / k columns] B_j[n-th r / k rows])^T; all is times alpha / (r + h).
As one pair of rank k r: down has A_n^T on the inputs n, up has those rows of B_j on the outputs j.
Sources: GraLoRA, arXiv 2505.20355; PEFT `tuners/gralora`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, TensorGroup, f32
from diffadapt.algorithms.factored import Factored, block_diagonal, configured_alpha
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_ROLES = ("gralora_A", "gralora_B", "gralora_A_general", "gralora_B_general")


@dataclass(frozen=True, eq=False)
class GraLoRA(Factored):
    """a (k, in / k, r), b (k, r, out / k), general_a (h, in) and general_b (out, h) or None."""

    algorithm: ClassVar[str] = "gralora"

    a: Tensor
    b: Tensor
    general_a: Tensor | None
    general_b: Tensor | None
    alpha: float

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role in group for role in _ROLES):
            return None
        a, b = group.take(_ROLES[0]), group.take(_ROLES[1])
        general_a = general_b = None
        if _ROLES[2] in group or _ROLES[3] in group:
            general_a, general_b = group.take(_ROLES[2]), group.take(_ROLES[3])
        fits = a.ndim == b.ndim == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
        if not fits or a.shape[2] % a.shape[0]:
            raise AlgorithmError(
                f"{group.name}: gralora_A {tuple(a.shape)} and gralora_B {tuple(b.shape)} do not fit together; "
                "expected (k, in / k, r) and (k, r, out / k), with k a divisor of r."
            )
        delta = cls(a, b, general_a, general_b, configured_alpha(group, context, "alpha"))
        if general_a is not None and general_b is not None:
            out, inputs = delta.extent
            if general_a.shape[1:] != (inputs,) or tuple(general_b.shape) != (out, len(general_a)):
                raise AlgorithmError(f"{group.name}: gralora's general pair does not fit its blocks.")
        return delta

    @property
    def rank(self) -> int:
        return int(self.a.shape[2])

    @property
    def extent(self) -> tuple[int, int]:
        return int(self.b.shape[0] * self.b.shape[2]), int(self.a.shape[0] * self.a.shape[1])

    def pair(self, out_features: int, in_features: int) -> LowRank:
        k, _, rank = self.a.shape
        part = rank // k
        down = block_diagonal(f32(self.a).transpose(1, 2))
        # b[j, n part + t, o] -> up[(j, o), (n, j, t)]: of the rows that down has for n, the j-th part is for outputs j.
        b = f32(self.b).reshape(k, k, part, -1)
        up = torch.cat([block_diagonal(b[:, n].transpose(1, 2)) for n in range(k)], dim=1)
        if self.general_a is not None and self.general_b is not None:
            down = torch.cat([down, f32(self.general_a)])
            up = torch.cat([up, f32(self.general_b)], dim=1)
        general = 0 if self.general_a is None else len(self.general_a)
        return LowRank(down, up, self.alpha / (rank + general))

    def peft_fields(self, module: str) -> Fields | None:
        general = 0 if self.general_a is None else len(self.general_a)
        return {
            "peft_type": "GRALORA", "r": self.rank, "gralora_k": int(self.a.shape[0]), "hybrid_r": general,
            "alpha": self.alpha,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The tensors; alpha is the config's."""
        named = dict(zip(_ROLES, (self.a, self.b, self.general_a, self.general_b), strict=True))
        return {role: t for role, t in named.items() if t is not None}

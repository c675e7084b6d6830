"""C3A: a change in blocks that are circular convolutions.

`c3a_kernel` k (out / b, in / b, b): block (p, q) of delta W is the circulant matrix [i, j] = k[p, q, (j - i) mod b] /
in. Sources: C3A, arXiv 2407.19342; PEFT `tuners/c3a`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape
from diffadapt.algorithms.factored import require_linear
from diffadapt.algorithms.full import Full
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class C3A(Delta):
    """kernel: (out / b, in / b, b)."""

    algorithm: ClassVar[str] = "c3a"

    kernel: Tensor

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        kernel = group.take_optional("c3a_kernel")
        if kernel is None:
            return None
        if kernel.ndim != 3 or 0 in kernel.shape:
            raise AlgorithmError(f"{group.name}: c3a_kernel {tuple(kernel.shape)}; expected (out / b, in / b, b).")
        return cls(kernel)

    def dense(self, device: torch.device) -> Tensor:
        """The float32 change (out, in)."""
        high, wide, block = self.kernel.shape
        kernel = self.kernel.to(device, torch.float32)
        step = torch.arange(block, device=device)
        turned = kernel[:, :, (step[None, :] - step[:, None]) % block]
        return turned.transpose(1, 2).reshape(high * block, wide * block) / (wide * block)

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.dense(weight.device)

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        high, wide, block = self.kernel.shape
        expect_shape(self.algorithm, (high * block, wide * block), layer)

    def peft_fields(self, module: str) -> Fields | None:
        return {"peft_type": "C3A", "block_size": int(self.kernel.shape[2])}

    def tensors(self) -> dict[str, Tensor]:
        return {"c3a_kernel": self.kernel}

    def rows(self, start: int, stop: int) -> Delta:
        return Full(diff=self.dense(self.kernel.device)[start:stop])

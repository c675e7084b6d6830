"""RandLoRA: a full-rank sum of frozen random pairs, scaled by trained vectors.

Per module `randlora_lambda` l (r, n), `randlora_gamma` g (n, least), n = ceil(least / r), least = min(in, out), and
for the whole model (repeated in every module) `randlora_A` A (r, 1, .), `randlora_B` B (., n or more, r).
B' = B[:most, :n] flattened to (most, n r); A' = l[:, :, None] * A[:, :, :least] * g flattened to (r n, least): the two
orders differ, and that is what is trained. delta W = alpha / r * B' A', transposed where the inputs are not the least.
With `save_projection=False` the matrices are drawn again as PEFT does: A, then B base by base, kaiming uniform (a =
sqrt 5) in bfloat16, each over its standard deviation; or ternary with `sparse` and `very_sparse`. PEFT draws in
float16 on machines without bfloat16: adapters trained there without their matrices come out wrong, and no file says so.
Sources: RandLoRA, arXiv 2502.00987; PEFT `tuners/randlora`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.factored import configured_alpha, number, require_linear
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.errors import AlgorithmError

_SPARSE = 3


@dataclass(frozen=True, eq=False)
class RandLoRA(Delta):
    """lambdas (r, n), gammas (n, least). sparsity: 0, or the s of ternary matrices; -1: the root of the least size."""

    algorithm: ClassVar[str] = "randlora"

    lambdas: Tensor
    gammas: Tensor
    alpha: float
    bank: Bank
    seed: int
    sparsity: int
    module: str = field(compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "randlora_lambda" not in group and "randlora_gamma" not in group:
            return None
        lambdas, gammas = group.take("randlora_lambda"), group.take("randlora_gamma")
        for name in ("randlora_A", "randlora_B"):
            repeated = group.take_optional(name)
            if repeated is not None:
                context.bank.tensors.setdefault(name, repeated)
        if lambdas.ndim != 2 or gammas.ndim != 2 or lambdas.shape[1] != gammas.shape[0]:
            raise AlgorithmError(
                f"{group.name}: randlora_lambda {tuple(lambdas.shape)} and randlora_gamma {tuple(gammas.shape)} do not "
                "fit together; expected (r, n) and (n, min(in, out))."
            )
        config = context.config
        alpha = configured_alpha(group, context, "randlora_alpha")
        sparsity = -1 if config.get("very_sparse") else _SPARSE if config.get("sparse") else 0
        seed = int(number(group, config, "projection_prng_key", 0))
        return cls(lambdas, gammas, alpha, context.bank, seed, sparsity, group.name)

    @property
    def rank(self) -> int:
        return int(self.lambdas.shape[0])

    def bases(self) -> tuple[Tensor, Tensor]:
        """The shared A and B, saved or drawn. Raises AlgorithmError where the sizes to draw are not known."""
        shared = self.bank.tensors
        if "randlora_A" in shared and "randlora_B" in shared:
            return shared["randlora_A"], shared["randlora_B"]
        out, inputs = self.bank.largest(self.algorithm)
        key = (self.algorithm, self.seed, self.rank, self.sparsity, out, inputs)
        if key not in self.bank.drawn:
            self.bank.drawn[key] = _draw(self.rank, min(out, inputs), max(out, inputs), self.seed, self.sparsity)
        a, b = self.bank.drawn[key]
        return a, b

    def weight_delta(self, weight: Tensor) -> Tensor:
        least, most = sorted(weight.shape)
        a, b = (f32(t, weight) for t in self.bases())
        lambdas, gammas = f32(self.lambdas, weight), f32(self.gammas, weight)
        left = b[:most, : len(gammas)].flatten(1)
        right = (lambdas[:, :, None] * a[:, :, :least] * gammas).flatten(0, 1)
        delta = (left @ right) * (self.alpha / self.rank)
        return delta if weight.shape[1] == least else delta.T

    def check(self, layer: Layer) -> None:
        require_linear(self.algorithm, layer)
        if self.gammas.shape[1] != min(layer.shape):
            raise AlgorithmError(
                f"randlora: randlora_gamma {tuple(self.gammas.shape)} does not fit a Linear of {layer.shape}. "
                "The adapter is for another model."
            )
        a, b = (self.bank.tensors.get(f"randlora_{side}") for side in "AB")
        if a is not None and b is not None:
            count, rank, least, most = len(self.gammas), self.rank, min(layer.shape), max(layer.shape)
            ok = a.ndim == b.ndim == 3 and a.shape[:2] == (rank, 1) and b.shape[2] == rank
            if not ok or a.shape[2] < least or b.shape[0] < most or b.shape[1] < count:
                raise AlgorithmError(
                    f"randlora: the shared matrices {tuple(a.shape)} and {tuple(b.shape)} do not cover a Linear of "
                    f"{layer.shape} at rank {rank}."
                )
        self.bank.note(self.module, layer.shape)

    @property
    def bank_tensors(self) -> Mapping[str, Tensor]:
        """The shared matrices where they are saved."""
        names = ("randlora_A", "randlora_B")
        return {name: self.bank.tensors[name] for name in names if name in self.bank.tensors}

    def peft_fields(self, module: str) -> Fields | None:
        return {
            "peft_type": "RANDLORA", "r": self.rank, "randlora_alpha": self.alpha, "projection_prng_key": self.seed,
            "sparse": self.sparsity == _SPARSE, "very_sparse": self.sparsity < 0,
            "save_projection": bool(self.bank_tensors),
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The module's own; the shared matrices are the file's."""
        return {"randlora_lambda": self.lambdas, "randlora_gamma": self.gammas}


def _draw(rank: int, least: int, most: int, seed: int, sparsity: int) -> tuple[Tensor, Tensor]:
    """The shared matrices, as PEFT draws them."""
    generator = torch.Generator().manual_seed(seed)
    count = math.ceil(least / rank)
    if sparsity:
        limit = 1 / (2 * (math.sqrt(least) if sparsity < 0 else sparsity))
        drawn = [torch.rand(s, generator=generator) for s in ((rank, 1, least), (most, count, rank))]
        signs = [(t > 1 - limit).float() - (t < limit).float() for t in drawn]
        return signs[0] / signs[0].std(), signs[1] / signs[1].std()

    def uniform(*size: int) -> Tensor:
        empty = torch.empty(size, dtype=torch.bfloat16)
        return nn.init.kaiming_uniform_(empty, a=math.sqrt(5), generator=generator)

    a = uniform(rank, 1, least)
    b = torch.cat([uniform(most, 1, rank) for _ in range(count)], dim=1)
    return a / a.std(), b / b.std()

"""VeRA and PVeRA: one frozen random pair for all modules, and two vectors per module that scale it.

delta W = (b * B[:out]) (d * A[:, :in]), rows scaled. Per module `vera_lambda_b` b (out,), `vera_lambda_d` d (r,);
for the whole model `vera_A` A (r, largest in), `vera_B` B (largest out, r). PVeRA: `pvera_lambda_b` (out,),
`pvera_lambda_d` (2r,), `pvera_A` (2r, largest in), `pvera_B` (largest out, r), of which the first r rows are the mean
and the others a variance, for training only.
With `save_projection=False` the pair is drawn again as PEFT does: from a CPU generator seeded with
`projection_prng_key`, A and then B, uniform within +-sqrt(6 / columns). This takes torch's CPU generator, whose draws
are the same on all machines so far; PEFT itself warns of it.
Sources: VeRA, arXiv 2310.11454; PVeRA, arXiv 2512.07703; PEFT `tuners/vera`, `tuners/pvera`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.base import Context, TensorGroup, f32
from diffadapt.algorithms.factored import Factored, number
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError

_SEED = 0  # PEFT's default of projection_prng_key


@dataclass(frozen=True, eq=False)
class VeRA(Factored):
    """lambda_b (out,), lambda_d (r,) or, probabilistic, (2r,). bank: the shared pair, or what it is drawn for.

    seed: where the pair is not saved; module: the file's name of this one.
    """

    algorithm: ClassVar[str] = "vera"
    probabilistic: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Any]] = {"d_initial": 0.1, "seed": _SEED}

    lambda_b: Tensor
    lambda_d: Tensor
    bank: Bank
    seed: int
    module: str = field(compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if f"{cls.algorithm}_lambda_b" not in group and f"{cls.algorithm}_lambda_d" not in group:
            return None
        b, d = group.take(f"{cls.algorithm}_lambda_b"), group.take(f"{cls.algorithm}_lambda_d")
        shared = context.bank.tensors
        a = shared.get(f"{cls.algorithm}_A")
        halves = 2 if cls.probabilistic else 1
        if b.ndim != 1 or d.ndim != 1 or len(d) % halves or (a is not None and len(a) != len(d)):
            raise AlgorithmError(
                f"{group.name}: {cls.algorithm}_lambda_b {tuple(b.shape)} and _lambda_d {tuple(d.shape)} do not fit "
                f"the shared {cls.algorithm}_A {None if a is None else tuple(a.shape)}."
            )
        if (a is None) != (f"{cls.algorithm}_B" not in shared):
            raise AlgorithmError(f"{group.name}: the file holds only one of {cls.algorithm}_A and {cls.algorithm}_B.")
        seed = int(number(group, context.config, "projection_prng_key", _SEED))
        return cls(b, d, context.bank, seed, group.name)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """b: zero; d: `d_initial`; the shared pair: drawn from `seed`, frozen. As PEFT begins."""
        start.require(cls.algorithm, ("linear",))
        halves = 2 if cls.probabilistic else 1
        if start.rank < 1:
            raise AlgorithmError(f"{cls.algorithm}: rank {start.rank}; expected 1 or more.")
        seed, roles = start.option("seed", _SEED), (f"{cls.algorithm}_A", f"{cls.algorithm}_B")
        if roles[0] not in start.bank.tensors:
            generator = torch.Generator().manual_seed(seed)
            sizes = ((halves * start.rank, start.largest[1]), (start.largest[0], start.rank))
            start.bank.tensors |= {role: _uniform(size, generator) for role, size in zip(roles, sizes, strict=True)}
        shared = len(start.bank.tensors[roles[0]])
        if shared != halves * start.rank:
            raise AlgorithmError(f"{cls.algorithm}: ranks {start.rank} and {shared // halves}; all modules share one.")
        lambda_d = torch.full((halves * start.rank,), start.option("d_initial", 0.1))
        return cls(torch.zeros(start.rows), lambda_d, start.bank, seed, start.module)

    @property
    def rank(self) -> int:
        return len(self.lambda_d) // (2 if self.probabilistic else 1)

    @property
    def extent(self) -> None:
        """The module tells how much of the shared pair is its own."""
        return None

    def projection(self) -> tuple[Tensor, Tensor]:
        """The shared A and B, saved or drawn. Raises AlgorithmError where the sizes to draw are not known."""
        shared = self.bank.tensors
        if f"{self.algorithm}_A" in shared:
            return shared[f"{self.algorithm}_A"], shared[f"{self.algorithm}_B"]
        out, inputs = self.bank.largest(self.algorithm)
        key = (self.algorithm, self.seed, len(self.lambda_d), self.rank, out, inputs)
        if key not in self.bank.drawn:
            generator = torch.Generator().manual_seed(self.seed)
            sizes = ((len(self.lambda_d), inputs), (out, self.rank))
            self.bank.drawn[key] = tuple(_uniform(size, generator) for size in sizes)
        a, b = self.bank.drawn[key]
        return a, b

    def pair(self, out_features: int, in_features: int) -> LowRank:
        a, b = self.projection()
        rank = self.rank
        down = f32(self.lambda_d)[:rank, None] * f32(a, self.lambda_d)[:rank, :in_features]
        return LowRank(down, f32(self.lambda_b)[:, None] * f32(b, self.lambda_b)[:out_features])

    def check(self, layer: Layer) -> None:
        super().check(layer)
        a, b = (self.bank.tensors.get(f"{self.algorithm}_{side}") for side in "AB")
        covered = (
            a is None
            or b is None
            or (
                a.ndim == b.ndim == 2
                and b.shape[1] == self.rank
                and (b.shape[0] >= layer.shape[0] and a.shape[1] >= layer.shape[1])
            )
        )
        if len(self.lambda_b) != layer.shape[0] or not covered:
            raise AlgorithmError(
                f"{self.algorithm}: lambda_b {tuple(self.lambda_b.shape)} does not fit a Linear of {layer.shape}. "
                "The adapter is for another model."
            )
        self.bank.note(self.module, layer.shape)

    @property
    def bank_tensors(self) -> Mapping[str, Tensor]:
        """The shared pair where it is saved."""
        names = (f"{self.algorithm}_A", f"{self.algorithm}_B")
        return {name: self.bank.tensors[name] for name in names if name in self.bank.tensors}

    def peft_fields(self, module: str) -> Fields | None:
        return {
            "peft_type": self.algorithm.upper(), "r": self.rank, "projection_prng_key": self.seed,
            "save_projection": bool(self.bank_tensors),
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The module's own; the shared pair is the file's."""
        return {f"{self.algorithm}_lambda_b": self.lambda_b, f"{self.algorithm}_lambda_d": self.lambda_d}


@dataclass(frozen=True, eq=False)
class PVeRA(VeRA):
    """VeRA of which the mean alone acts; with `sample_at_inference` PEFT adds noise to it, which is refused."""

    algorithm: ClassVar[str] = "pvera"
    probabilistic: ClassVar[bool] = True

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        delta = super().parse(group, context)
        if delta is not None and context.config.get("sample_at_inference"):
            raise AlgorithmError(
                f"{group.name}: sample_at_inference=True draws a new weight in every forward; set it to false in "
                "adapter_config.json to use the mean."
            )
        return delta


def _uniform(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Kaiming's uniform distribution with a ReLU's gain, drawn in one call as PEFT draws it."""
    # The bound in PEFT's own order of operations: the last bit counts.
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(size[1]))
    return torch.empty(size).uniform_(-bound, bound, generator=generator)

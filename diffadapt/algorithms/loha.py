"""LoHa: delta W = (alpha / rank) * (w1_a w1_b) * (w2_a w2_b), the product of two low-rank matrices, elementwise.

Tensors: `hada_w1_a`, `hada_w2_a` (out, r), `hada_w1_b`, `hada_w2_b` (r, in[/groups] * kernel); OneTrainer keeps
convolutions four-dimensional, (out, r, 1, 1) and (r, in, *kernel). Tucker form: `hada_t1`, `hada_t2` (r, r, *kernel)
between `a` (r, out) and `b` (r, in). Sources: FedPara, arXiv 2108.06098; LyCORIS.
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
from diffadapt.algorithms.peft_fields import Fields, Otherwise
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError

FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


@dataclass(frozen=True, eq=False)
class LoHa(Delta):
    """Two low-rank factors, multiplied elementwise.

    w1_a, w2_a: (out, r[, 1...]), Tucker (r, out). w1_b, w2_b: (r, in * kernel), (r, in, *kernel), Tucker (r, in).
    t1, t2: (r, r, *kernel), both or none. shared: the second product is w1_a w2_b, which is what LyCORIS 3.0.0
    trained (its w2_a stayed zero).
    """

    algorithm: ClassVar[str] = "loha"
    options: ClassVar[Mapping[str, Any]] = {"tucker": False}

    w1_a: Tensor
    w1_b: Tensor
    w2_a: Tensor
    w2_b: Tensor
    alpha: float
    t1: Tensor | None = None
    t2: Tensor | None = None
    shared: bool = False

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role in group for role in FACTORS):
            return None
        w1_a, w1_b, w2_a, w2_b = (group.take(role) for role in FACTORS)
        t1 = t2 = None
        if "hada_t1" in group or "hada_t2" in group:
            t1, t2 = group.take("hada_t1"), group.take("hada_t2")
        shapes = [tuple(t.shape) for t in (w1_a, w1_b, w2_a, w2_b)]
        rank = w1_b.shape[0] if w1_b.ndim > 1 else 0
        side = 1 if t1 is None else 0
        fits = all(t.ndim > 1 and t.shape[side] == rank for t in (w1_a, w2_a)) and w2_b.shape == w1_b.shape
        if not fits or w1_a.shape != w2_a.shape or rank == 0:
            raise AlgorithmError(f"{group.name}: the LoHa factors {shapes} do not fit together; expected one rank.")
        if t1 is not None and t2 is not None and not tuple(t1.shape[:2]) == tuple(t2.shape[:2]) == (rank, rank):
            raise AlgorithmError(f"{group.name}: hada_t1 {tuple(t1.shape)} does not fit rank {rank}.")
        # Zeros alone prove nothing: any LyCORIS or PEFT module that never saw a gradient has them.
        shared = str(context.config.get("lycoris_version", "")) == "3.0.0" and t1 is None and not bool(w2_a.any())
        return cls(w1_a, w1_b, w2_a, w2_b, group.take_alpha(rank, context), t1, t2, shared)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Normal numbers, w2_a zero: the standard deviations are LyCORIS'. tucker: cores, for kernels."""
        start.require("loha")
        start.require_rank("loha")
        rank, shape, alpha = start.rank, start.layer.shape, start.scale_alpha
        if start.option("tucker", False) and math.prod(shape[2:]) > 1:
            cores = [start.normal(0.1, rank, rank, *shape[2:]) for _ in range(2)]
            w1_a, w1_b = start.normal(0.1, rank, shape[0]), start.normal(1.0, rank, shape[1])
            w2_b = start.normal(1.0, rank, shape[1])
            return cls(w1_a, w1_b, torch.zeros(rank, shape[0]), w2_b, alpha, cores[0], cores[1])
        w1_a, w1_b = start.normal(0.1, start.rows, rank), start.normal(1.0, rank, start.columns)
        return cls(w1_a, w1_b, torch.zeros(start.rows, rank), start.normal(1.0, rank, start.columns), alpha)

    @property
    def rank(self) -> int:
        return int(self.w1_b.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def _pairs(self, like: Tensor | None = None) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(up (out, r), down (r, in * kernel)) of both products in float32."""

        def pair(a: Tensor, b: Tensor, t: Tensor | None) -> tuple[Tensor, Tensor]:
            a, b = f32(a, like).flatten(1), f32(b, like).flatten(1)
            if t is None:
                return a, b
            return a.T, torch.einsum("ab...,bc->ac...", f32(t, like), b).flatten(1)

        second = self.w1_a if self.shared else self.w2_a
        return pair(self.w1_a, self.w1_b, self.t1), pair(second, self.w2_b, self.t2)

    def weight_delta(self, weight: Tensor) -> Tensor:
        (a1, b1), (a2, b2) = self._pairs(weight)
        return ((a1 @ b1) * (a2 @ b2) * self.scale).reshape(weight.shape)

    def low_rank(self) -> LowRank | None:
        """The exact pair of rank r * r: up[o, (p, q)] = a1[o, p] a2[o, q], down likewise (Khatri-Rao products).

        Given only where it saves at least half of the memory and multiplications of the dense delta:
        2 * r^2 * (out + in * kernel) <= out * in * kernel.
        """
        rows, columns = self._flat_shape()
        return self.pair() if 2 * self.rank**2 * (rows + columns) <= rows * columns else None

    def pair(self) -> LowRank:
        """The exact pair of rank r * r, whatever its size."""
        (a1, b1), (a2, b2) = self._pairs()
        up = (a1.unsqueeze(2) * a2.unsqueeze(1)).flatten(1)
        down = (b1.unsqueeze(1) * b2.unsqueeze(0)).flatten(0, 1)
        return LowRank(down, up, self.scale)

    @property
    def shape_alone(self) -> tuple[int, ...]:
        rows, _ = self._flat_shape()
        return (rows, *self.w1_b.shape[1:], *(() if self.t1 is None else self.t1.shape[2:]))

    def _flat_shape(self) -> tuple[int, int]:
        columns = self.w1_b[0].numel()
        if self.t1 is None:
            return int(self.w1_a.shape[0]), columns
        return int(self.w1_a.shape[1]), columns * self.t1[0, 0].numel()

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv"):
            raise AlgorithmError(f"loha: cannot act on a {layer.kind} layer; expected Linear or Conv.")
        expect_shape("loha", self._flat_shape(), layer)

    def peft_fields(self, module: str) -> Fields | None:
        """None for the product of LyCORIS 3.0.0, and for OneTrainer's factors of a convolution."""
        if self.shared or self.w1_a.ndim > 2 or self.w1_b.ndim > 2:
            return None
        core = True if self.t1 is not None else Otherwise(False)
        return {"peft_type": "LOHA", "r": self.rank, "alpha": self.alpha, "use_effective_conv2d": core}

    def tensors(self) -> dict[str, Tensor]:
        second = self.w1_a if self.shared else self.w2_a
        named = dict(zip(FACTORS, (self.w1_a, self.w1_b, second, self.w2_b), strict=True))
        named |= {role: t for role, t in (("hada_t1", self.t1), ("hada_t2", self.t2)) if t is not None}
        return named | {"alpha": torch.tensor(self.alpha)}

    def rows(self, start: int, stop: int) -> LoHa:
        if self.t1 is not None:
            return dataclasses.replace(self, w1_a=self.w1_a[:, start:stop], w2_a=self.w2_a[:, start:stop])
        return dataclasses.replace(self, w1_a=self.w1_a[start:stop], w2_a=self.w2_a[start:stop])

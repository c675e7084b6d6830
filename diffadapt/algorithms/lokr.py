"""LoKr: delta W = s * (w1 kron w2), a Kronecker product whose factors may be low-rank themselves.

out = l * k, in[/groups] = m * n. Tensors: `lokr_w1` (l, m) or `lokr_w1_a` (l, r) and `lokr_w1_b` (r, m); `lokr_w2`
(k, n[, *kernel]) or `lokr_w2_a` (k, r) and `lokr_w2_b` (r, n * kernel), or with a Tucker core `lokr_t2` (r, r, *kernel)
`lokr_w2_a` (r, k) and `lokr_w2_b` (r, n). Any split of the sizes is read off the shapes.
s = alpha / rank; with both factors full LyCORIS, OneTrainer, musubi and ai-toolkit train with s = 1 whatever alpha
says (LyCORIS' `rs_lora`: with sqrt(rank), and saves alpha = rank^1.5), PEFT with its config's alpha / r.
Sources: KronA, arXiv 2212.10650; LyCORIS; PEFT `tuners/lokr`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.forms import Dense, Form
from diffadapt.algorithms.kronecker import Kronecker, check_factors, side_of
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields, Otherwise
from diffadapt.algorithms.start import Start, factorised
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class LoKr(Delta):
    """A Kronecker product of two factors; shapes as in the module's docstring.

    size: the rank that alpha is divided by, None where the scale is `full_scale`. left_padded: PEFT's Conv1d with a
    full, three-dimensional w2 pads w1 on the left before the Kronecker product, which arranges the numbers differently.
    cut: the output rows that are kept, for a slice of a fused module that does not end where a row of w1 does.
    said_alpha: the file's, where it has no meaning: written back, and nothing else. factor: the `decompose_factor` of
    PEFT's config.
    """

    algorithm: ClassVar[str] = "lokr"
    options: ClassVar[Mapping[str, Any]] = {
        "factor": -1, "decompose_both": False, "full_matrix": False, "tucker": False, "unbalanced": False,
    }  # fmt: skip

    w1: Tensor | None
    w1_a: Tensor | None
    w1_b: Tensor | None
    w2: Tensor | None
    w2_a: Tensor | None
    w2_b: Tensor | None
    t2: Tensor | None
    alpha: float
    size: int | None
    full_scale: float = 1.0
    left_padded: bool = False
    cut: tuple[int, int] | None = None
    said_alpha: float | None = None
    factor: int | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(
            role in group for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
        ):
            return None
        w1, w1_a, w1_b = _factor(group, "lokr_w1")
        w2, w2_a, w2_b = _factor(group, "lokr_w2")
        t2 = group.take_optional("lokr_t2")
        check_factors(group.name, w1, w1_a, w1_b, w2, w2_a, w2_b, t2)
        peft = context.writer == "peft"
        inner = w2_b if w2_b is not None else w1_b
        size = inner.shape[0] if inner is not None else None
        if size is None and peft:
            size = int(context.config.get("r") or 0) or None
        padded = peft and w2 is not None and w2.ndim == 3
        stabilised = size is None and str(context.options.get("rs_lora", False)).lower() in ("true", "1")
        # Without meaning beside two full factors; ai-toolkit's is 9999999999, which is infinite in float16.
        stored = group.take_optional("alpha") if size is None and not stabilised else None
        said = float(stored) if stored is not None and stored.numel() == 1 else None
        alpha = group.take_alpha(size or 1, context) if size or stabilised else 1.0
        full_scale = abs(alpha) ** (1 / 3) if stabilised else 1.0
        alpha = alpha if size else 1.0
        asked = context.config.get("decompose_factor")
        factor = asked if isinstance(asked, int) else None
        return cls(w1, w1_a, w1_b, w2, w2_a, w2_b, t2, alpha, size, full_scale, padded, said_alpha=said, factor=factor)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """w1 and w2_a: Kaiming's uniform numbers; w2 or w2_b: zero. A rank of half a side or more makes w2 whole.

        factor: l and m, the sizes of w1 (-1: near the square roots); unbalanced: l and k change places;
        decompose_both: w1 as a pair too; full_matrix: w2 whole; tucker: a core, for kernels. All as in LyCORIS.
        """
        start.require("lokr")
        rank, factor = start.rank, start.option("factor", -1)
        if rank < 1:
            raise AlgorithmError(f"lokr: rank {rank}; expected 1 or more.")
        kernel = start.layer.shape[2:]
        m, n = factorised(start.layer.shape[1], factor)
        rows, large = factorised(start.layer.shape[0], factor)
        if start.option("unbalanced", False):
            rows, large = large, rows
        whole = start.option("full_matrix", False)
        pair = start.option("decompose_both", False) and rank < max(rows, m) / 2 and not whole
        w1 = None if pair else start.kaiming(rows, m)
        w1_a, w1_b = (start.kaiming(rows, rank), start.kaiming(rank, m)) if pair else (None, None)
        w2 = w2_a = w2_b = t2 = None
        if rank >= max(large, n) / 2 or whole:
            w2 = torch.zeros(large, n, *kernel)
        elif start.option("tucker", False) and math.prod(kernel) > 1:
            w2_a, w2_b, t2 = start.kaiming(rank, large), torch.zeros(rank, n), start.kaiming(rank, rank, *kernel)
        else:
            w2_a, w2_b = start.kaiming(large, rank), torch.zeros(rank, n * math.prod(kernel))
        size = None if w1 is not None and w2 is not None else rank
        return cls(w1, w1_a, w1_b, w2, w2_a, w2_b, t2, start.scale_alpha if size else 1.0, size)

    @property
    def rank(self) -> int | None:
        return self.size

    @property
    def scale(self) -> float:
        return self.alpha / self.size if self.size else self.full_scale

    def _small(self, like: Tensor | None = None) -> Tensor:
        """w1 (l, m) in float32."""
        if self.w1 is not None:
            return f32(self.w1, like)
        return f32(_given(self.w1_a), like) @ f32(_given(self.w1_b), like)

    def _large(self, like: Tensor | None = None) -> Tensor:
        """w2 (k, n * kernel) or (k, n, *kernel) in float32."""
        if self.w2 is not None:
            return f32(self.w2, like)
        outer, inner = self._thin(like)
        return (outer @ inner.flatten(1)).reshape(outer.shape[0], *inner.shape[1:])

    def _thin(self, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """w2 as outer (k, r) and inner (r, n * kernel) or (r, n, *kernel), in float32."""
        outer, inner = f32(_given(self.w2_a), like), f32(_given(self.w2_b), like)
        if self.t2 is None:
            return outer.flatten(1), inner
        return outer.T, torch.einsum("ab...,bc->ac...", f32(self.t2, like), inner)

    def weight_delta(self, weight: Tensor) -> Tensor:
        small, large = self._small(weight), self._large(weight)
        if not self.left_padded:
            small = small.reshape(*small.shape, *(1,) * (large.ndim - 2))
        # torch.kron refuses some non-contiguous factors.
        product = torch.kron(small.contiguous(), large.contiguous()) * self.scale
        product = product.reshape(self._fused_rows, *weight.shape[1:])
        return product if self.cut is None else product[self.cut[0] : self.cut[1]]

    def row_products(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        if self.cut is not None or self.left_padded:
            return super().row_products(weight)
        small, large = self._small(weight) * self.scale, self._large(weight).flatten(1)
        rows, columns = small.shape
        base = f32(weight).reshape(rows, len(large), columns, -1)
        crossed = (torch.einsum("lkmn,kn->lkm", base, large) * small.unsqueeze(1)).sum(-1)
        return crossed.flatten(), torch.outer(small.square().sum(1), large.square().sum(1)).flatten()

    @property
    def _borders(self) -> tuple[int, int]:
        """(l, k): output rows are numbered l-major."""
        small = self.w1 if self.w1 is not None else _given(self.w1_a)
        large = self.w2 if self.w2 is not None else _given(self.w2_a)
        return int(small.shape[0]), int(large.shape[1 if self.t2 is not None and self.w2 is None else 0])

    @property
    def _fused_rows(self) -> int:
        return math.prod(self._borders)

    @property
    def _columns(self) -> int:
        """in * kernel."""
        small = self.w1 if self.w1 is not None else _given(self.w1_b)
        if self.w2 is not None:
            return int(small.shape[1]) * self.w2[0].numel()
        core = 1 if self.t2 is None else self.t2[0, 0].numel()
        return int(small.shape[1]) * _given(self.w2_b)[0].numel() * core

    @property
    def shape_alone(self) -> tuple[int, ...]:
        rows = self._fused_rows if self.cut is None else self.cut[1] - self.cut[0]
        core = self.w2 if self.w2 is not None else self.t2
        kernel = tuple(core.shape[2:]) if core is not None else ()
        return (rows, self._columns // math.prod(kernel), *kernel)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        if layer.groups > 1 or self.left_padded:
            return (Dense(self.weight_delta(weight())),)
        small = self._small() * self.scale
        kernel = layer.shape[2:]
        columns = layer.shape[1] // small.shape[1]
        if self.w2 is not None:
            full = self.w2.reshape(self.w2.shape[0], columns, *kernel)
            return (Kronecker(small, full, None, self.cut),)
        outer, inner = self._thin()
        return (Kronecker(small, inner.reshape(-1, columns, *kernel), outer, self.cut),)

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv"):
            raise AlgorithmError(f"lokr: cannot act on a {layer.kind} layer; expected Linear or Conv.")
        rows = self._fused_rows if self.cut is None else self.cut[1] - self.cut[0]
        if (rows, self._columns) != (layer.shape[0], math.prod(layer.shape[1:])):
            raise AlgorithmError(
                f"lokr: the factors make a change of shape {(rows, self._columns)}, the {layer.kind} weight is "
                f"{layer.shape}. The adapter is for another model."
            )

    def peft_fields(self, module: str) -> Fields | None:
        """None for a slice, and for sizes that PEFT would split otherwise.

        PEFT decides by the rank which factors are whole; where both are, any rank of half w2's size or more will do.
        """
        rank = self.size or max(self._large_sides)
        factor = self._factor()
        if self.cut is not None or factor is None or (self.w2 is not None and rank < max(self._large_sides) / 2):
            return None
        return {
            "peft_type": "LOKR", "r": rank, "alpha": self.scale * rank, "decompose_factor": factor,
            "decompose_both": Otherwise(False) if self.w1_a is None else True,
            "use_effective_conv2d": Otherwise(False) if self.t2 is None else True,
        }  # fmt: skip

    @property
    def _large_sides(self) -> tuple[int, int]:
        """(k, n)."""
        small = self.w1 if self.w1 is not None else _given(self.w1_b)
        return self._borders[1], self.shape_alone[1] // int(small.shape[1])

    def _factor(self) -> int | Otherwise | None:
        """PEFT's `decompose_factor`, of which it makes l and m; None where no factor makes these."""
        if self.factor is not None:
            return self.factor
        small = self.w1 if self.w1 is not None else _given(self.w1_b)
        left, right = self._borders[0], int(small.shape[1])
        # A pair of thin factors does not tell the kernel from the channels.
        columns = [self.shape_alone[1] // n for n in (1, 3, 9, 27, 25, 49) if self.shape_alone[1] % n == 0]
        for factor in (-1, max(left, right), min(left, right)):
            if left == side_of(self._fused_rows, factor) and right in {side_of(n, factor) for n in columns}:
                return factor if factor > 0 else Otherwise(-1)
        return None

    def tensors(self) -> dict[str, Tensor]:
        """The factors; of a cut slice the dense change as `diff`, which no Kronecker product can hold."""
        if self.cut is not None:
            return {"diff": self.weight_delta(torch.empty(self.cut[1] - self.cut[0], self._columns))}
        w1, alpha = self.w1, self.alpha
        if w1 is not None and self.w2 is not None and self.scale != 1.0:
            # Most readers do not scale two full factors: folded in, the file means the same to all.
            w1, alpha = f32(w1) * self.scale, float(self.size or 1)
        elif w1 is not None and self.w2 is not None:
            alpha = 1.0 if self.said_alpha is None else self.said_alpha
        return self._named(w1) | {"alpha": torch.tensor(alpha)}

    def peft_tensors(self) -> dict[str, Tensor]:
        """The factors as they are: PEFT scales two full ones too, by its config."""
        return self.tensors() if self.cut is not None else self._named(self.w1)

    def _named(self, w1: Tensor | None) -> dict[str, Tensor]:
        """The factors that are there, with this w1."""
        named = {
            "lokr_w1": w1, "lokr_w1_a": self.w1_a, "lokr_w1_b": self.w1_b, "lokr_w2": self.w2,
            "lokr_w2_a": self.w2_a, "lokr_w2_b": self.w2_b, "lokr_t2": self.t2,
        }  # fmt: skip
        return {role: t for role, t in named.items() if t is not None}

    def rows(self, start: int, stop: int) -> LoKr:
        """Whole rows of w1 where the borders are multiples of w2's rows, else these and a cut."""
        offset = self.cut[0] if self.cut is not None else 0
        start, stop, step = start + offset, stop + offset, self._borders[1]
        if self.left_padded:
            return dataclasses.replace(self, cut=(start, stop))
        first, last = start // step, -(-stop // step)
        cut = (start - first * step, stop - first * step)
        return dataclasses.replace(
            self,
            w1=None if self.w1 is None else self.w1[first:last],
            w1_a=None if self.w1_a is None else self.w1_a[first:last],
            cut=None if cut == (0, (last - first) * step) else cut,
        )


def _given(factor: Tensor | None) -> Tensor:
    """A half of a factor: `parse` takes the whole factor or both halves."""
    if factor is None:
        raise AlgorithmError("lokr: a factor is missing; expected it whole or as the pair a and b.")
    return factor


def _factor(group: TensorGroup, role: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """(full, a, b): a factor given whole or as a pair."""
    if f"{role}_a" in group or f"{role}_b" in group:
        return None, group.take(f"{role}_a"), group.take(f"{role}_b")
    return group.take(role), None, None

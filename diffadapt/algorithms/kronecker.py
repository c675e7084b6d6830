"""What LoKr is made of beside its tensors: its live form, the sizes of its factors in PEFT, and whether they fit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffadapt.algorithms.forms import Branch
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.products import KroneckerProduct
from diffadapt.algorithms.start import factorised
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class Kronecker(Branch):
    """(w1 kron w2) x as two thin products: x's channels are (m, n), w2 maps n to k, w1 maps m to l.

    w1: (l, m), times the scale. w2: (k, n, *kernel), or where `outer` is given (r, n, *kernel) followed by outer
    (k, r). rows: the range of output channels that is kept. Linear and ungrouped convolutions.
    """

    w1: Tensor
    w2: Tensor
    outer: Tensor | None
    rows: tuple[int, int] | None = None

    def change(self, x: Tensor, layer: Layer) -> Tensor:
        rows, columns = self.w1.shape
        if layer.kind == "linear":
            h = x.reshape(*x.shape[:-1], columns, -1)
            steps = (self.w2,) if self.outer is None else (self.w2, self.outer)
            # w1 mixes whole slices and is bound by memory: it acts where they are narrowest.
            widths = [h.shape[-1], *(step.shape[0] for step in steps)]
            narrowest = widths.index(min(widths)) if rows <= columns else len(steps)
            for number, step in enumerate(steps):
                h = layer.apply(self.w1 @ h if number == narrowest else h, step)
            y = (self.w1 @ h if narrowest == len(steps) else h).flatten(-2)
        else:
            batch, _, *space = x.shape
            h = layer.apply(x.reshape(batch * columns, -1, *space), self.w2, 1)
            h = h if self.outer is None else layer.pointwise(h, self.outer)
            y = (self.w1 @ h.reshape(batch, columns, -1)).reshape(batch, rows * h.shape[1], *h.shape[2:])
        if self.rows is not None:
            y = y.narrow(layer.channel_dim, self.rows[0], self.rows[1] - self.rows[0])
        return y

    def onto(self, y: Tensor, x: Tensor, layer: Layer, multiplier: float) -> Tensor:
        mixed = torch.is_autocast_enabled(x.device.type) or y.dtype != x.dtype
        if layer.kind != "linear" or self.rows is not None or mixed or not y.numel():
            return super().onto(y, x, layer, multiplier)
        w1 = self.w1 if multiplier == 1.0 else self.w1 * multiplier
        added: Tensor = KroneckerProduct.apply(y, x, w1, self.w2, self.outer)  # type: ignore[no-untyped-call]
        return added


def side_of(size: int, factor: int) -> int:
    """What PEFT takes for w1's side of a size: the factor where it divides it, else the largest divisor up to the
    factor (-1: any) and the square root."""
    return factor if factor > 0 and size % factor == 0 else factorised(size, factor)[0]


def check_factors(name: str, *factors: Tensor | None) -> None:
    """Raise AlgorithmError for factors (w1, w1_a, w1_b, w2, w2_a, w2_b, t2) that do not fit together."""
    _, w1_a, w1_b, w2, w2_a, w2_b, t2 = factors
    shapes = [tuple(t.shape) for t in factors if t is not None]
    fits = all(t is None or t.ndim >= 2 for t in factors)
    if fits and w1_a is not None and w1_b is not None:
        fits = w1_a.shape[1] == w1_b.shape[0]
    if fits and w2_a is not None and w2_b is not None:
        side = 1 if t2 is None else 0
        fits = w2_a.shape[side] == w2_b.shape[0]
        fits = fits and (t2 is None or tuple(t2.shape[:2]) == (w2_b.shape[0],) * 2)
    if fits and (t2 is None or w2 is None):
        return
    raise AlgorithmError(f"{name}: the LoKr factors of the shapes {shapes} do not fit together.")

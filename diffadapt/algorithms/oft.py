"""OFT on outputs: LyCORIS diag-OFT and Kohya's OFT. W'_j = R_j^T W_j for k consecutive groups of n output rows.

Tensors: `oft_blocks` (k, n, n), any matrices; Q = X - X^T, R = (I + Q)(I - Q)^-1. `alpha`: the constraint per output
channel, c = alpha * out, a limit on the norm of the whole Q: LyCORIS reads 0 as "off", sd-scripts as "almost the
identity". `rescale` (out, 1, ...): LyCORIS multiplies row o by it. LyCORIS 2.1 wrote no alpha (a constraint is lost)
and a rescale (out,) that it multiplied along the *last* axis, so that only square Linears trained.
Sources: OFT, arXiv 2306.07280; LyCORIS `diag_oft.py`; sd-scripts `networks/oft.py`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.cayley import cayley, clip_ratio, skew, wide
from diffadapt.algorithms.forms import Form, Scale, TwoSided
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.rotation import OutputRotation, Stage, Stages, form, square_blocks
from diffadapt.algorithms.start import Start, factorised
from diffadapt.errors import AlgorithmError


def take_constraint(group: TensorGroup, context: Context, kohya: bool) -> float:
    """The `alpha` of a rotation. An override only fills a missing one in: a constraint is no scale.

    Raises AlgorithmError for a value that is no finite number >= 0, and for a Kohya file without one, where it is
    never off.
    """
    stored = group.take_optional("alpha")
    if stored is None and context.alpha is None and kohya:
        raise AlgorithmError(f"{group.name}: Kohya OFT needs its constraint 'alpha'; give it as alpha=..., often 1e-3.")
    alpha = context.alpha or 0.0 if stored is None else float(stored.item()) if stored.numel() == 1 else math.nan
    if not 0 <= alpha < math.inf:
        raise AlgorithmError(f"{group.name}: the constraint alpha is {alpha}; expected one finite number >= 0.")
    return alpha


def freed(blocks: Tensor, limit: float, kohya: bool, multiplier: float) -> tuple[Tensor, float]:
    """Blocks at a multiplier with the constraint applied, and a constraint that no longer clips them (or parts)."""
    q = skew(blocks)
    x = wide(blocks) * clip_ratio(q, limit, kohya) * multiplier
    free = max(limit, float(skew(x).norm().detach())) * (1 + 1e-5) if kohya else 0.0
    return x.float(), free


@dataclass(frozen=True, eq=False)
class OFT(OutputRotation):
    """A block rotation of the outputs, by the generator's blocks. kohya: sd-scripts' meaning of the constraint."""

    algorithm: ClassVar[str] = "oft"
    options: ClassVar[Mapping[str, Any]] = {"constraint": 0.0, "rescaled": False}

    blocks: Tensor
    alpha: float = 0.0
    rescale: Tensor | None = None
    kohya: bool = False

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        blocks = group.peek("oft_blocks")
        if blocks is None or blocks.ndim == 4:
            return None
        square_blocks(group.name, "oft_blocks", group.take("oft_blocks"), 3)
        kohya = context.writer == "kohya_oft"
        rescale = group.take_optional("rescale")
        if rescale is not None and rescale.numel() != blocks.shape[0] * blocks.shape[1]:
            raise AlgorithmError(
                f"{group.name}: rescale {tuple(rescale.shape)} does not fit the {blocks.shape[0] * blocks.shape[1]} "
                f"outputs of oft_blocks {tuple(blocks.shape)}."
            )
        return cls(blocks, take_constraint(group, context, kohya), rescale, kohya)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Zero generators: no rotation. rank: the size of a block, where it divides the outputs (LyCORIS' rule
        otherwise). constraint: LyCORIS', 0 for none; rescaled: a trained factor for every row."""
        start.require("oft")
        size, count = factorised(start.rows, start.rank)
        if size < 2:
            raise AlgorithmError(
                f"oft: {start.rows} outputs cannot be cut into blocks of up to {start.rank}. Give a rank that divides "
                "them, or leave the module out of the targets."
            )
        ones = (1,) * (len(start.layer.shape) - 1)
        rescale = torch.ones(start.rows, *ones) if start.option("rescaled", False) else None
        return cls(torch.zeros(count, size, size), start.option("constraint", 0.0), rescale)

    @property
    def out_features(self) -> int:
        return self.blocks.shape[0] * self.blocks.shape[1]

    @property
    def scales_inputs(self) -> bool:
        """LyCORIS 2.1's rescale along the wrong axis."""
        return self.rescale is not None and self.rescale.ndim == 1

    @property
    def row_scale(self) -> Tensor | None:
        return None if self.rescale is None or self.scales_inputs else self.rescale.flatten()

    def stages(self, channels: int) -> Stages:
        q = skew(self.blocks)
        q = q * clip_ratio(q, self.alpha * self.out_features, self.kohya)
        # R^T = C+(-Q): the trainers contract over the first index of R.
        return (Stage((cayley(-q),)).times(self.stage),)

    def weight_delta(self, weight: Tensor) -> Tensor:
        delta = super().weight_delta(weight)
        if self.rescale is None or not self.scales_inputs:
            return delta
        scale = f32(self.rescale, weight)
        return delta * scale + f32(weight) * (scale - 1)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        if self.rescale is None or not self.scales_inputs:
            return super().forms(layer, weight, bias)
        return (TwoSided(Scale(f32(self.rescale) - 1), form(self.stages(layer.out_features))),)

    def check(self, layer: Layer) -> None:
        self.require(layer, ("linear", "conv"))
        wrong_axis = self.scales_inputs and (layer.kind != "linear" or layer.shape[0] != layer.shape[1])
        if layer.shape[0] != self.out_features or wrong_axis:
            raise self.misfit(layer, layer.shape[0], "outputs")

    def named(self) -> dict[str, Tensor]:
        rest = {} if self.rescale is None else {"rescale": self.rescale}
        return {"oft_blocks": self.blocks, "alpha": torch.tensor(self.alpha)} | rest

    def turned(self, multiplier: float) -> Self:
        blocks, free = freed(self.blocks, self.alpha * self.out_features, self.kohya, multiplier)
        return dataclasses.replace(self, blocks=blocks, alpha=free / self.out_features)

    def rows(self, start: int, stop: int) -> Delta:
        size = self.blocks.shape[1]
        self.border(start, stop, size, self.out_features)
        if self.scales_inputs:
            raise AlgorithmError(
                "oft: LyCORIS 2.1's rescale fits square weights only, so its rows cannot be separated."
            )
        # The constraint is on the norm of the whole tensor: it must act before the rows part.
        whole = self.turned(1.0) if self.limited else self
        rescale = None if self.rescale is None else self.rescale[start:stop]
        alpha = whole.alpha * self.out_features / (stop - start)
        return dataclasses.replace(
            whole, blocks=whole.blocks[start // size : stop // size], alpha=alpha, rescale=rescale
        )

    @property
    def limited(self) -> bool:
        """Whether a constraint is on."""
        return self.kohya or self.alpha > 0

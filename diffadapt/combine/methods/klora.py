"""`klora`: K-LoRA (Ouyang and others, arXiv 2502.18461), content or style, layer by layer.

Two adapters, the content first, the style second. On a layer that both have, with S the sum of the K largest |numbers|
of a change, K the product of the ranks, and p the progress of the denoising from 0 to 1:
    D = w_1 D_1 where S_1 / gamma > S_2 (alpha p + beta), else w_2 D_2;
    gamma = the mean over these layers of sum |D_1| / sum |D_2|, so that the adapter with the larger numbers has no
    advantage of them.
The weights are strengths and have no part in the choice, but for 0, which leaves the layer to the other.

The paper chooses anew at every step; here it is one choice for all steps, the one that it makes at `progress`. It goes
from content to style as the steps go by: a layer whose S_1 / (gamma S_2) is above alpha + beta is the content's at
every step, one below beta the style's, and the others change over once. So what `progress=0.5` chooses is, on every
layer, the paper's choice for half of the steps at least. Two adapters made at 0.25 and 0.75, the first for the first
half of the steps and the second for the other, come nearer.

Source: the authors' code, which takes 64, that is 8 * 8, for K whatever the ranks are, and counts calls for steps.
Limits: no layer has both, and the seams between layers are left to the model. A bias or a norm goes by the sum of all
its numbers. A layer that only one adapter has keeps it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.combine.methods.base import Method
from diffadapt.combine.methods.exact import Sum
from diffadapt.combine.methods.several import number
from diffadapt.combine.part import Part
from diffadapt.errors import CombineError


@dataclass(frozen=True)
class KLoRA(Method):
    """The content's or the style's change. progress: of the denoising, from 0 to 1. alpha, beta: how the style gains by
    it. k: how many numbers count; None: the product of the ranks. gamma: None: measured over all layers."""

    name: ClassVar[str] = "klora"
    takes: ClassVar[int | None] = 2

    progress: float = 0.5
    alpha: float = 1.5
    beta: float = 0.5
    k: int | None = None
    gamma: float | None = None

    def __post_init__(self) -> None:
        for option, high in (("progress", 1.0), ("alpha", float("inf")), ("beta", float("inf"))):
            value = getattr(self, option)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
                most = " and at most 1" if high == 1 else ""
                raise CombineError(f"{self.name}: {option} is {value!r}; expected a number of at least 0{most}.")
        if self.k is not None and self.k < 1:
            raise CombineError(f"{self.name}: k is {self.k!r}; expected a whole number above 0, or None.")
        if self.gamma is not None:
            number(self.name, "gamma", self.gamma, 0)

    def over(self, layers: Iterable[Sequence[Part]]) -> Method:
        """The method with gamma measured."""
        if self.gamma is not None:
            return self
        ratios = []
        for parts in layers:
            if len(parts) == 2:
                content, style = (float(part.dense().abs().sum(dtype=torch.float64)) for part in parts)
                if content and style:
                    ratios.append(content / style)
        return dataclasses.replace(self, gamma=sum(ratios) / len(ratios) if ratios else 1.0)

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        live = [part for part in parts if part.weight != 0] or parts[:1]
        if len(live) > 1:
            k = self.count(live)
            content, style = (_largest(part.dense(), k) for part in live)
            live = [live[0 if self.takes_content(content, style) else 1]]
        return Sum().weight(live, rank)

    def vector(self, changes: Sequence[tuple[float, Tensor]]) -> Tensor:
        live = [(weight, change) for weight, change in changes if weight != 0] or list(changes[:1])
        if len(live) > 1:
            content, style = (float(change.abs().sum(dtype=torch.float64)) for _, change in live)
            live = [live[0 if self.takes_content(content, style) else 1]]
        return live[0][0] * live[0][1]

    def takes_content(self, content: float, style: float) -> bool:
        """The choice between two sums."""
        return content / (self.gamma or 1.0) > style * (self.alpha * self.progress + self.beta)

    def count(self, parts: Sequence[Part]) -> int:
        """K. Raises CombineError where a change has no rank."""
        if self.k is not None:
            return self.k
        product = 1
        for part in parts:
            if not part.delta.rank:
                raise CombineError(
                    f"klora: the {part.delta.algorithm} of {part.owner} has no rank; say how many numbers count: k=64."
                )
            product *= part.delta.rank
        return product


def _largest(change: Tensor, k: int) -> float:
    """The sum of the k largest magnitudes."""
    magnitudes = change.abs().flatten()
    return float(magnitudes.topk(min(k, magnitudes.numel()), sorted=False).values.sum(dtype=torch.float64))

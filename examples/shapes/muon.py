"""Muon, the optimiser that gives the change of every matrix the same size in all directions.

Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the step's size as in Liu et
al., "Muon is scalable for LLM training" (2025), so that learning rates are those of Adam. Both pipelines learn to
follow their prompts in well under half of Adam's steps. `torch.optim.Muon` is the same algorithm, a matrix at a time
and in bfloat16: on a CPU that takes four times as long as this, which stacks the matrices of one shape, and longer
than the step it belongs to.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

EDGES = re.compile(r"embed|^unet\.conv_(in|out)$|^transformer\.proj_out$")
"""What reads the input or writes the output is no hidden layer: Adam does better there."""

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Newton-Schulz's coefficients: five rounds bring singular values from 0.001 to 1 near 1."""


def hidden(model: nn.Module) -> list[Tensor]:
    """The weights of a model's hidden layers, linear or convolutional."""
    layers = (nn.Linear, nn.Conv2d)
    return [m.weight for name, m in model.named_modules() if isinstance(m, layers) and not EDGES.search(name)]


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """The nearest matrices whose singular values are about 1. matrices: (n, rows, columns), any float dtype."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonal part of the averaged gradient. Convolutions count as matrices of (out, all else)."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; Nesterov's momentum. A parameter without a gradient counts as one whose gradient is zero."""
        for group in self.param_groups:
            alike = defaultdict(list)
            for parameter in group["params"]:
                alike[parameter.shape].append(parameter)
            for shape, members in alike.items():
                flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten(1) for p in members]
                size = 0.2 * max(flat[0].shape) ** 0.5  # the root mean square of Adam's steps
                for member, change in zip(members, self._change(torch.stack(flat), members[0], group), strict=True):
                    member.sub_(change.view(shape), alpha=group["lr"] * size)

    def _change(self, gradients: Tensor, first: Tensor, group: dict[str, Any]) -> Tensor:
        """gradients: (n, rows, columns), of parameters of one shape, the first of which holds their averages."""
        average = self.state[first].setdefault("average", torch.zeros_like(gradients))
        average.lerp_(gradients, 1 - group["momentum"])
        return orthogonal(gradients.lerp(average, group["momentum"]))

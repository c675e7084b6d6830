"""AdaLoRA: delta W = alpha / (init_r + 1e-5) * B (E * A), a LoRA with singular values, pruned while training.

Tensors: `lora_down` = lora_A (r, in * kernel), `lora_E` (r, 1), `lora_up` = lora_B (out, r); r: the ranks that were
left. The scale keeps the rank at the start, `init_r` of the config (else the rank of the file), and an alpha <= 0
means that rank. Sources: AdaLoRA, arXiv 2303.10512; PEFT `tuners/adalora`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, expect_shape, f32
from diffadapt.algorithms.forms import Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True)
class Pruning:
    """How a training shares out the ranks of all modules. Defaults and names are PEFT's where it has them.

    target_rank: the mean rank at the end. begin, end: shares of the steps before the pruning and after it; every: steps
    between two prunings. beta1, beta2: of the means of a number's sensitivity and of its uncertainty. orthogonality:
    the weight of the penalty.
    """

    target_rank: int = 8
    begin: float = 0.1
    end: float = 0.3
    every: int = 10
    beta1: float = 0.85
    beta2: float = 0.85
    orthogonality: float = 0.5


@dataclass(frozen=True, eq=False)
class AdaLoRA(Delta):
    """A low-rank pair with singular values. start_rank: the rank in the scale. pruning: of a training."""

    algorithm: ClassVar[str] = "adalora"
    options: ClassVar[Mapping[str, Any]] = dataclasses.asdict(Pruning())

    down: Tensor
    singular: Tensor
    up: Tensor
    alpha: float
    start_rank: int
    pruning: Pruning | None = field(default=None, compare=False)

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if "lora_E" not in group:
            return None
        singular, down, up = group.take("lora_E"), group.take("lora_down"), group.take("lora_up")
        rank = len(down)
        if down.ndim != 2 or up.ndim != 2 or up.shape[1] != rank or tuple(singular.shape) != (rank, 1):
            raise AlgorithmError(
                f"{group.name}: lora_A {tuple(down.shape)}, lora_E {tuple(singular.shape)} and lora_B "
                f"{tuple(up.shape)} do not fit together; expected (r, in), (r, 1) and (out, r)."
            )
        start = int(context.config.get("init_r") or rank)
        alpha = group.take_alpha(start, context)
        return cls(down, singular, up, alpha if alpha > 0 else float(start), start)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """A and B: normal numbers of 0.02; the singular values: zero. As PEFT begins, with `rank` as its init_r."""
        start.require("adalora", ungrouped=True)
        start.require_rank("adalora")
        rank = start.rank
        down, up = start.normal(0.02, rank, start.columns), start.normal(0.02, start.rows, rank)
        pruning = Pruning(**{name: start.option(name, default) for name, default in cls.options.items()})
        if not 0 < pruning.target_rank <= rank:
            raise AlgorithmError(
                f"adalora: target_rank {pruning.target_rank} of a rank of {rank}; expected 1 to {rank}."
            )
        return cls(down, torch.zeros(rank, 1), up, start.scale_alpha, rank, pruning)

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / (self.start_rank + 1e-5)

    def low_rank(self) -> LowRank:
        """The pair with the singular values in the down half, which stays flat: (r, in * kernel)."""
        return LowRank(f32(self.down) * f32(self.singular), self.up, self.scale)

    def weight_delta(self, weight: Tensor) -> Tensor:
        return self.low_rank().dense(tuple(weight.shape), weight.device)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        pair = self.low_rank()
        return (dataclasses.replace(pair, down=pair.down.reshape(self.rank, *layer.shape[1:])),)

    def check(self, layer: Layer) -> None:
        if layer.kind not in ("linear", "conv"):
            raise AlgorithmError(f"adalora: cannot act on a {layer.kind} layer; expected Linear or Conv.")
        if layer.kind == "conv" and layer.groups != 1:
            raise AlgorithmError("adalora: cannot act on a grouped convolution; PEFT does not train it.")
        expect_shape("adalora", (self.up.shape[0], self.down.shape[1]), layer)

    def peft_fields(self, module: str) -> Fields | None:
        """None for more ranks than AdaLoRA began with, which PEFT's mask cannot say.

        The mask keeps the first of `init_r` ranks: on loading PEFT cuts its modules to them, and scales by `init_r`.
        `target_r` and `total_step` are of the pruning, which is over, but PEFT makes no config without them.
        """
        if self.rank > self.start_rank:
            return None
        mask = [True] * self.rank + [False] * (self.start_rank - self.rank)
        return {
            "peft_type": "ADALORA", "init_r": self.start_rank, "target_r": self.start_rank, "lora_alpha": self.alpha,
            "total_step": 1, "rank_pattern": {} if all(mask) else {f"{module}.lora_E": mask},
        }  # fmt: skip

    def settled(self) -> AdaLoRA:
        """Without the ranks that were pruned: those of a singular value of 0, where others are not."""
        left = self.singular.flatten().nonzero().flatten()
        if self.pruning is None or len(left) in (0, self.rank):
            return dataclasses.replace(self, pruning=None)
        return AdaLoRA(self.down[left], self.singular[left], self.up[:, left], self.alpha, self.start_rank)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors; `init_r` is the config's and comes back only with it."""
        pair = {"lora_down": self.down, "lora_E": self.singular, "lora_up": self.up}
        return pair | {"alpha": torch.tensor(self.alpha)}

    def rows(self, start: int, stop: int) -> Delta:
        return dataclasses.replace(self, up=self.up[start:stop])

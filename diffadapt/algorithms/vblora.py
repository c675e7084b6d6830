"""VB-LoRA: both factors of a LoRA are made of vectors from one bank for the whole model.

Per module `vblora_logits_A` (r, in / v, N), `vblora_logits_B` (out / v, r, N); for the model `vblora_vector_bank`
(N, v). Every v numbers of a factor are the mixture of the bank's `topk` vectors with the largest logits, weighed by the
softmax of these. With `save_only_topk_weights` there are `..._topk_indices` (., ., k) integers and `..._topk_weights`
(., ., k - 1) in place of the logits; the last weight is one less the others. delta W = B A, no scale.
Sources: VB-LoRA, arXiv 2405.15179; PEFT `tuners/vblora`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.base import Context, TensorGroup, f32
from diffadapt.algorithms.factored import Factored, number
from diffadapt.algorithms.forms import LowRank
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError

_SIDES = ("vblora_logits_A", "vblora_logits_B")
_BANK = "vblora_vector_bank"


@dataclass(frozen=True, eq=False)
class VBLoRA(Factored):
    """logits: (A, B), or None where only the chosen vectors are saved: chosen (indices A, B), weights (A, B)."""

    algorithm: ClassVar[str] = "vblora"
    kept: ClassVar[frozenset[str]] = frozenset()  # the bank is trained too
    options: ClassVar[Mapping[str, Any]] = {
        "num_vectors": 256, "vector_length": 256, "topk": 2, "logits_std": 0.1, "bank_bound": 0.02,
    }  # fmt: skip

    logits: tuple[Tensor, ...]
    chosen: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    topk: int
    bank: Bank

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        if not any(role.startswith(_SIDES) for role in group):
            return None
        vectors = context.bank.tensors.get("vblora_vector_bank")
        if vectors is None or vectors.ndim != 2:
            raise AlgorithmError(f"{group.name}: the file lacks the shared vblora_vector_bank (N, v).")
        if f"{_SIDES[0]}_topk_indices" in group:
            chosen = tuple(group.take(f"{side}_topk_indices") for side in _SIDES)
            weights = tuple(group.take(f"{side}_topk_weights") for side in _SIDES)
            fits = all(
                indices.ndim == 3 and indices.numel() and weight.shape == (*indices.shape[:2], indices.shape[2] - 1)
                for indices, weight in zip(chosen, weights, strict=True)
            )
            if not fits or any(int(i.max()) >= len(vectors) or int(i.min()) < 0 for i in chosen):
                raise AlgorithmError(f"{group.name}: vblora's indices, weights and bank do not fit together.")
            return cls((), chosen, weights, int(chosen[0].shape[2]), context.bank)
        logits = tuple(group.take(side) for side in _SIDES)
        topk = int(number(group, context.config, "topk"))
        if any(t.ndim != 3 or t.shape[2] != len(vectors) for t in logits) or not 0 < topk <= len(vectors):
            raise AlgorithmError(
                f"{group.name}: vblora's logits {[tuple(t.shape) for t in logits]} do not choose {topk} of the bank's "
                f"{len(vectors)} vectors."
            )
        return cls(logits, (), (), topk, context.bank)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """The bank, for all modules: uniform within `bank_bound`; logits: normal numbers of `logits_std`. As PEFT
        begins, whose first change is small but not zero."""
        start.require("vblora", ("linear",))
        length, count = start.option("vector_length", 256), start.option("num_vectors", 256)
        topk = start.option("topk", 2)
        rows, columns = start.rows, start.columns
        if length < 1 or rows % length or columns % length or not 1 <= topk <= count or start.rank < 1:
            raise AlgorithmError(
                f"vblora: vectors of {length} do not make up a weight of {start.layer.shape} at rank {start.rank} with "
                f"{topk} of {count}; give a vector_length that divides both sizes, here "
                f"{math.gcd(rows, columns)} or a divisor of it."
            )
        bound = start.option("bank_bound", 0.02)
        if _BANK not in start.bank.tensors:
            start.bank.tensors[_BANK] = torch.empty(count, length).uniform_(-bound, bound, generator=start.generator)
        std = start.option("logits_std", 0.1)
        down = start.normal(std, start.rank, columns // length, count)
        up = start.normal(std, rows // length, start.rank, count)
        return cls((down, up), (), (), topk, start.bank)

    @property
    def rank(self) -> int:
        return int((self.logits or self.chosen)[0].shape[0])

    @property
    def extent(self) -> tuple[int, int] | None:
        a, b = self.logits or self.chosen
        length = self.bank.tensors["vblora_vector_bank"].shape[1]
        return int(b.shape[0] * length), int(a.shape[1] * length)

    def mixture(self, side: int) -> Tensor:
        """The float32 vectors of one factor, (., ., v)."""
        if self.logits:
            top = f32(self.logits[side]).topk(self.topk, dim=-1)
            indices, weights = top.indices, top.values.softmax(-1)
        else:
            indices, weights = self.chosen[side].long(), f32(self.weights[side])
            weights = torch.cat([weights, 1 - weights.sum(-1, keepdim=True)], dim=-1)
        vectors = f32(self.bank.tensors["vblora_vector_bank"], weights)
        return (weights.unsqueeze(-1) * vectors[indices]).sum(-2)

    def pair(self, out_features: int, in_features: int) -> LowRank:
        down = self.mixture(0).flatten(1)
        return LowRank(down, self.mixture(1).transpose(1, 2).reshape(-1, self.rank))

    @property
    def bank_tensors(self) -> Mapping[str, Tensor]:
        return {"vblora_vector_bank": self.bank.tensors["vblora_vector_bank"]}

    def peft_fields(self, module: str) -> Fields | None:
        count, length = self.bank.tensors["vblora_vector_bank"].shape
        return {
            "peft_type": "VBLORA", "r": self.rank, "num_vectors": int(count), "vector_length": int(length),
            "topk": self.topk, "save_only_topk_weights": not self.logits,
        }  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """The module's own; the bank is the file's, topk the config's."""
        if self.logits:
            return dict(zip(_SIDES, self.logits, strict=True))
        named = {f"{side}_topk_indices": t for side, t in zip(_SIDES, self.chosen, strict=True)}
        return named | {f"{side}_topk_weights": t for side, t in zip(_SIDES, self.weights, strict=True)}

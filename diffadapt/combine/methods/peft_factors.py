"""What PEFT's `add_weighted_adapter` does to A and B one by one: `peft_linear`, `peft_ties`, and so on.

A = rule(sign(c_i) sqrt|c_i| A_i), B = rule(sqrt|c_i| B_i) with c_i = w_i * (alpha_i / r), rule a sum, TIES, DARE or a
pruning by magnitude, each applied to the factors as though these were the changes.

Here to make again what somebody made with PEFT, and for nothing else: the result is no sum of the adapters. For two,
B A = c_1 B_1 A_1 + c_2 B_2 A_2 + sqrt(c_1 c_2) (B_1 A_2 + B_2 A_1), and the cross terms are as large as what was asked
for and mean nothing: the same two adapters with the ranks of one of them in another order, which change nothing by
themselves, give another result. `sum` and `svd` have no such terms, and `ties`, `dare_linear`, ... act on the changes.
PEFT's "cat" and "svd" give what `cat` and `svd` give, its "ties_svd" and so on what the methods of these names do.

Limits. Plain LoRAs of one rank only. PEFT takes "linear" instead of the rule where it is given one adapter in all; here
the rule is applied. It leaves biases as they happen to be; here they are joined by the rule.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.lora import LoRA
from diffadapt.combine.methods.dare import DareLinear, DareTies
from diffadapt.combine.methods.elementwise import Elementwise
from diffadapt.combine.methods.pruning import summed
from diffadapt.combine.methods.ties import MagnitudePrune, Ties
from diffadapt.combine.part import Part
from diffadapt.errors import CombineError


class Factorwise(Elementwise):
    """A rule on the factors. The classes below add it from the method of that name."""

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        if rank is not None:
            raise CombineError(f"{self.name}: the rank stays the adapters'; ask a method on the changes for another.")
        loras = [self._lora(part) for part in parts]
        first = loras[0]
        for part, lora in zip(parts, loras, strict=True):
            if (lora.rank, lora.transposed) != (first.rank, first.transposed):
                raise CombineError(
                    f"{self.name}: {parts[0].owner} has rank {first.rank} and {part.owner} {lora.rank}; their factors "
                    "cannot be joined number by number. Use 'sum', 'svd' or another method on the changes."
                )
        scales = [part.weight * lora.scale for part, lora in zip(parts, loras, strict=True)]
        roots = [math.sqrt(abs(scale)) for scale in scales]
        signed = [math.copysign(root, scale) for root, scale in zip(roots, scales, strict=True)]
        down = self.joined([lora.down for lora in loras], signed)
        up = self.joined([lora.up.flatten(1) for lora in loras], roots)
        return dataclasses.replace(first, down=down, up=up, alpha=float(first.rank), rank_stabilised=False), 0.0

    def _lora(self, part: Part) -> LoRA:
        if isinstance(part.delta, LoRA) and part.delta.mid is None:
            return part.delta
        raise CombineError(
            f"{self.name}: the {part.delta.algorithm} of {part.owner} is no plain LoRA; use a method on the changes."
        )


@dataclass(frozen=True)
class PeftLinear(Factorwise):
    """PEFT's "linear"."""

    name: ClassVar[str] = "peft_linear"

    def join(self, changes: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
        return summed(changes, weights)


@dataclass(frozen=True)
class PeftMagnitudePrune(Factorwise, MagnitudePrune):
    """PEFT's "magnitude_prune"."""

    name: ClassVar[str] = "peft_magnitude_prune"


@dataclass(frozen=True)
class PeftTies(Factorwise, Ties):
    """PEFT's "ties"."""

    name: ClassVar[str] = "peft_ties"


@dataclass(frozen=True)
class PeftDareLinear(Factorwise, DareLinear):
    """PEFT's "dare_linear", with a seed."""

    name: ClassVar[str] = "peft_dare_linear"


@dataclass(frozen=True)
class PeftDareTies(Factorwise, DareTies):
    """PEFT's "dare_ties", with a seed."""

    name: ClassVar[str] = "peft_dare_ties"

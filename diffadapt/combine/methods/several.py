"""What the spectral methods share: only what has a weight takes part, and a change that is alone stays what it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.combine.methods.base import InSpace
from diffadapt.combine.methods.exact import Sum
from diffadapt.combine.part import Part
from diffadapt.errors import CombineError

ZERO = 1e-5
"""A singular value below this share of the largest is rounding: the files are in half or single precision."""


@dataclass(frozen=True)
class Several(InSpace):
    """A rule among two or more changes. On a layer that only one adapter has (or only one with a weight other than 0),
    there is nothing to settle: the result is that change times its weight."""

    def weight(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        live = [part for part in parts if part.weight != 0]
        return self.among(live, rank) if len(live) > 1 else Sum().weight(live or parts[:1], rank)

    def among(self, parts: Sequence[Part], rank: int | None) -> tuple[Delta, float]:
        """The rule. parts: at least two, none of weight 0."""
        return super().weight(parts, rank)


def one_of(method: str, option: str, value: Any, known: tuple[str, ...]) -> None:
    """Raise CombineError unless the value of an option is known."""
    if value not in known:
        raise CombineError(f"{method}: {option} is {value!r}; expected one of {', '.join(known)}.")


def number(method: str, option: str, value: Any, low: float, high: float = float("inf")) -> None:
    """Raise CombineError unless an option is a number above `low` and at most `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
        most = "" if high == float("inf") else f" and at most {high:g}"
        raise CombineError(f"{method}: {option} is {value!r}; expected a number above {low:g}{most}.")


def spectrum(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (a, r), s (r,) and V' (r, b) in float64, of as many singular values as are not rounding."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    r = int((s > ZERO * s[0]).sum()) if len(s) else 0
    return u[:, :r], s[:r], vh[:r]

"""What stands in for a slot's own work where the samples of a batch have strengths of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class Rows(Protocol):
    """Adapters of the samples' own (`mixed_rows`), or gates that learn (`gating`)."""

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        """Have all that a call needs on a device, in a dtype."""

    def write(self) -> None:
        """Bring what runs to the strengths in force."""

    def fold(self, x: Tensor) -> Tensor | None:
        """`Slot.fold`, or None for x itself."""

    def effect(self, x: Tensor, output: Tensor, forward: Callable[[Tensor], Tensor], folded: bool) -> Tensor:
        """`Slot.effect`."""

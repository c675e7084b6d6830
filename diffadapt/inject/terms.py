"""The sum that a merge adds to one weight, computed in row blocks: on a CPU, such as stay in its cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer

BLOCK = 1 << 19
"""Elements of a block: its float32 copy (2 MiB) stays in a core's cache between the steps that use it."""

BLOCK_ON_ACCELERATORS = 1 << 26
"""There every step of a block costs a launch: most weights are one block."""


@dataclass(frozen=True)
class Terms:
    """sum_i m_i delta_i(W), flattened to (rows, columns) of the weight.

    left (rows, R) and right (R, columns): all low-rank pairs with strength and scale folded in, float32; dense: the
    float32 sum of the other deltas, (rows, columns). None where there are none of a kind.
    """

    rows: int
    columns: int
    left: Tensor | None
    right: Tensor | None
    dense: Tensor | None

    @property
    def step(self) -> int:
        """Rows of a block."""
        known = self.dense if self.left is None else self.left
        on_cpu = known is None or known.device.type == "cpu"
        return max(1, (BLOCK if on_cpu else BLOCK_ON_ACCELERATORS) // max(1, self.columns))

    def blocks(self) -> Iterator[tuple[int, int]]:
        """First and last row of every block."""
        step = self.step
        for start in range(0, self.rows, step):
            yield start, min(start + step, self.rows)

    def buffer(self, device: torch.device) -> Tensor:
        """A scratch block, (rows of a block, columns) float32."""
        return torch.empty(min(self.rows, self.step), self.columns, device=device)

    def add_to(self, block: Tensor, start: int, stop: int) -> Tensor:
        """block += the rows start..stop of the sum, in place; block: float32."""
        if self.left is not None and self.right is not None:
            block.addmm_(self.left[start:stop], self.right)
        if self.dense is not None:
            block.add_(self.dense[start:stop])
        return block

    def write(self, out: Tensor, start: int, stop: int) -> Tensor:
        """out = the rows start..stop of the sum; out: float32."""
        if self.left is not None and self.right is not None:
            torch.mm(self.left[start:stop], self.right, out=out)
            return out if self.dense is None else out.add_(self.dense[start:stop])
        return out.zero_() if self.dense is None else out.copy_(self.dense[start:stop])

    def sample(self, rows: Tensor) -> Tensor:
        """The sum's rows at the indices `rows`, float32."""
        total = torch.zeros(len(rows), self.columns, device=rows.device)
        if self.left is not None and self.right is not None:
            total.addmm_(self.left[rows], self.right)
        return total if self.dense is None else total.add_(self.dense[rows])


def gather_terms(deltas: Sequence[tuple[float, Delta]], layer: Layer, base: Tensor) -> Terms:
    """The terms of a weight: (strength, delta) pairs, every delta taken against `base`, the weight before any merge."""
    rows = layer.shape[0]
    columns = base.numel() // rows if rows else 0
    lefts: list[Tensor] = []
    rights: list[Tensor] = []
    dense: Tensor | None = None
    for strength, delta in deltas:
        pair = delta.low_rank()
        if pair is None:
            change = delta.weight_delta(base).reshape(rows, columns)  # may be the adapter's own tensor: never in place
            dense = change * strength if dense is None else dense.add_(change, alpha=strength)
            continue
        down, up = pair.down.to(base.device).flatten(1).float(), pair.up.to(base.device).float()
        if layer.kind == "embedding":  # a pair's delta is (dim, num), the weight (num, dim)
            down, up = up.T, down.T
            lefts.append(up * (strength * pair.scale))
        else:
            lefts.append(up.reshape(rows, -1) * (strength * pair.scale))
        rights.append(down)
    left = None if not lefts else lefts[0] if len(lefts) == 1 else torch.cat(lefts, dim=1)
    right = None if not rights else rights[0] if len(rights) == 1 else torch.cat(rights)
    return Terms(rows, columns, left, right, dense)

"""Kohya's OFT for Flux: one block rotation per split of a fused Linear (q, k, v; q, k, v, mlp).

Tensors: `oft_blocks.0` ... `oft_blocks.3`, (k, n_j, n_j) each, for consecutive runs of k * n_j output rows; `alpha`:
the constraint, alpha * (rows of the split) per split. Each split is what `oft.OFT` is with `kohya`.
Source: sd-scripts `networks/oft_flux.py` (its own merge raises; its training forward is the truth).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.oft import OFT, freed, take_constraint
from diffadapt.algorithms.rotation import OutputRotation, Stage, Stages, square_blocks
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class SplitOFT(OutputRotation):
    """Block rotations of consecutive runs of outputs, with a constraint on each run."""

    algorithm: ClassVar[str] = "oft"

    splits: tuple[Tensor, ...]
    alpha: float

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        roles = sorted((role for role in group if re.fullmatch(r"oft_blocks\.\d+", role)), key=lambda r: int(r[11:]))
        if not roles:
            return None
        if roles != [f"oft_blocks.{i}" for i in range(len(roles))]:
            raise AlgorithmError(
                f"{group.name}: splits {', '.join(roles)}; expected oft_blocks.0, .1, ... with no gap."
            )
        splits = tuple(square_blocks(group.name, role, group.take(role), 3) for role in roles)
        return cls(splits, take_constraint(group, context, kohya=True))

    @property
    def sizes(self) -> list[int]:
        """The rows of each split."""
        return [split.shape[0] * split.shape[1] for split in self.splits]

    def stages(self, channels: int) -> Stages:
        whole = (OFT(split, self.alpha, kohya=True).stages(0)[0].parts[0] for split in self.splits)
        return (Stage(tuple(whole)).times(self.stage),)

    def check(self, layer: Layer) -> None:
        self.require(layer, ("linear",))
        if layer.shape[0] != sum(self.sizes):
            raise self.misfit(layer, layer.shape[0], "outputs")

    def named(self) -> dict[str, Tensor]:
        blocks = {f"oft_blocks.{i}": split for i, split in enumerate(self.splits)}
        return blocks | {"alpha": torch.tensor(self.alpha)}

    def turned(self, multiplier: float) -> Self:
        done = [freed(s, self.alpha * n, True, multiplier) for s, n in zip(self.splits, self.sizes, strict=True)]
        alpha = max(free / n for (_, free), n in zip(done, self.sizes, strict=True))
        return dataclasses.replace(self, splits=tuple(blocks for blocks, _ in done), alpha=alpha)

    def rows(self, start: int, stop: int) -> Delta:
        """The rows of one or several whole splits, or of whole blocks within one."""
        edges = [0, *itertools.accumulate(self.sizes)]
        if start in edges and stop in edges and start < stop:
            return dataclasses.replace(self, splits=self.splits[edges.index(start) : edges.index(stop)])
        for split, low, high in zip(self.splits, edges, edges[1:], strict=False):
            if low <= start and stop <= high:
                return OFT(split, self.alpha, kohya=True, stage=self.stage).rows(start - low, stop - low)
        raise AlgorithmError(
            f"oft: rows {start}..{stop} cut the splits {edges}; apply the adapter to the fused weight."
        )

"""LyCORIS BOFT: a butterfly of M block rotations on the outputs, the first stage first.

Tensors: `oft_blocks` (M, k, b, b), any matrices, out = k * b, b even; Q = X - X^T, R = (I + Q)(I - Q)^-1, not
transposed. Stage i mixes within segments of 2^i * b rows: row c * 2h + g * h + t, h = 2^i * b / 2, stands at
c * 2h + 2t + g, where the blocks are cut. `alpha`: the constraint, alpha * out, one norm over all stages, 0 = off;
`rescale` (out, 1, ...): scales the rows at the end. Sources: BOFT, arXiv 2311.06243; LyCORIS `boft.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diffadapt.algorithms.base import Context, Delta, TensorGroup
from diffadapt.algorithms.cayley import cayley, clip_ratio, skew
from diffadapt.algorithms.forms import Turns
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.oft import freed, take_constraint
from diffadapt.algorithms.rotation import OutputRotation, Stage, Stages, square_blocks
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError

_JOINED = 128
"""Channels of a block of several stages, at most: larger ones cost more than the memory traffic that they save."""


def interleaved(channels: int, half: int, device: torch.device) -> Tensor:
    """The order in which the two halves of every segment of 2 * half channels alternate. (channels,) int64."""
    return torch.arange(channels, device=device).view(-1, 2, half).transpose(1, 2).flatten()


_SMALL = 1 << 16
"""Numbers of joined blocks that autograd may keep the way to."""


def joined(excess: Sequence[Tensor], first: int) -> Tensor:
    """Consecutive stages, of which the first is number `first`, as one turn: (k, n, n) less the identity.

    excess: (blocks, b, b) of every stage. A stage's block has channel t of half g at 2 t + g; in the result they stand
    as the channels do, the last stage's half first. Every stage doubles the block: its halves are what came before.
    """
    apart, run = 2**first, excess[0].shape[1] // 2
    turn = torch.eye(run, device=excess[0].device).expand(1, 1, run, run)
    for stage in excess:
        size = turn.shape[-1]
        blocks = stage + torch.eye(2 * run, device=stage.device)
        # A block by segment, run, apart, and half of its columns: (2 run, run). What came before alike: (run, size).
        blocks = blocks.view(-1, size // run, apart, 2 * run, run, 2).permute(0, 1, 2, 5, 3, 4)
        before = turn.expand(2 * len(blocks), apart, size, size).view(-1, 2, apart, size // run, run, size)
        product = blocks @ before.permute(0, 3, 2, 1, 4, 5)
        product = product.view(*product.shape[:4], run, 2, size)
        turn = product.permute(0, 2, 5, 1, 4, 3, 6).reshape(-1, apart, 2 * size, 2 * size)
    turn = turn.flatten(0, 1)
    return turn - torch.eye(turn.shape[-1], device=turn.device)


@dataclass(frozen=True, eq=False)
class BOFT(OutputRotation):
    """Butterfly stages on the outputs, by the generators' blocks."""

    algorithm: ClassVar[str] = "boft"
    options: ClassVar[Mapping[str, Any]] = {"constraint": 0.0, "rescaled": False}

    blocks: Tensor
    alpha: float = 0.0
    rescale: Tensor | None = None

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        blocks = group.peek("oft_blocks")
        if blocks is None or blocks.ndim != 4:
            return None
        square_blocks(group.name, "oft_blocks", group.take("oft_blocks"), 4)
        count, k, size, _ = blocks.shape
        rescale = group.take_optional("rescale")
        if size % 2 or k % 2 ** (count - 1) or (rescale is not None and rescale.numel() != k * size):
            seen = "" if rescale is None else f" with rescale {tuple(rescale.shape)}"
            raise AlgorithmError(
                f"{group.name}: oft_blocks {tuple(blocks.shape)}{seen} is no butterfly; expected (M, k, b, b) with "
                "even b, k a multiple of 2^(M-1), and a rescale of k * b numbers."
            )
        return cls(blocks, take_constraint(group, context, kohya=False), rescale)

    @classmethod
    def fresh(cls, start: Start) -> Self:
        """Zero generators: no rotation. rank: the largest size of a block; LyCORIS takes the largest even one that
        leaves a power of two of blocks. constraint, rescaled: as in OFT."""
        start.require("boft")
        size = 2 * (start.rows // (start.rows & -start.rows)) if start.rows % 2 == 0 else 0
        if not 0 < size <= start.rank:
            raise AlgorithmError(
                f"boft: {start.rows} outputs cannot be cut into a power of two of even blocks of up to {start.rank}; "
                + (f"give a rank of {size} or more." if size else "leave the module out of the targets.")
            )
        while 2 * size <= min(start.rank, start.rows):
            size *= 2
        count = start.rows // size
        ones = (1,) * (len(start.layer.shape) - 1)
        rescale = torch.ones(start.rows, *ones) if start.option("rescaled", False) else None
        blocks = torch.zeros(count.bit_length(), count, size, size)
        return cls(blocks, start.option("constraint", 0.0), rescale)

    @property
    def out_features(self) -> int:
        return self.blocks.shape[1] * self.blocks.shape[2]

    @property
    def row_scale(self) -> Tensor | None:
        return None if self.rescale is None else self.rescale.flatten()

    def stages(self, channels: int) -> Stages:
        q = skew(self.blocks)
        excess = cayley(q * clip_ratio(q, self.alpha * self.out_features, kohya=False))
        half = self.blocks.shape[2] // 2
        return tuple(
            Stage((part,), interleaved(self.out_features, 2**i * half, part.device)).times(self.stage)
            for i, part in enumerate(excess)
        )

    def turns(self, channels: int) -> Turns:
        """The stages joined: those that mix runs of neighbouring channels are one turn of larger blocks, and so on.

        Stage i mixes runs of b / 2 channels whose numbers differ in bit i: stages i..j make blocks of 2^(j - i + 1)
        runs, 2^i runs apart.
        """
        stages, run = [stage.parts[0] for stage in self.stages(channels)], self.blocks.shape[2] // 2
        bits = max(1, (_JOINED // run).bit_length() - 1)
        excess: list[Tensor] = []
        orders: list[tuple[Tensor, Tensor] | None] = []
        for first in range(0, len(stages), bits):
            part = stages[first : first + bits]
            if 2 ** len(part) * run * channels < _SMALL:
                excess.append(joined(part, first))
            else:  # what lies between is as large as the activations of a short prompt: made again in the backward
                excess.append(checkpoint(joined, part, first, use_reentrant=False, preserve_rng_state=False))
            channel = torch.arange(channels, device=self.blocks.device)
            order = channel.view(-1, 2 ** len(part), 2**first, run).transpose(1, 2).flatten()
            orders.append((order, order.argsort()) if first else None)
        return Turns(tuple(excess), tuple(orders))

    def check(self, layer: Layer) -> None:
        self.require(layer, ("linear", "conv"))
        if layer.shape[0] != self.out_features:
            raise self.misfit(layer, layer.shape[0], "outputs")

    def named(self) -> dict[str, Tensor]:
        rest = {} if self.rescale is None else {"rescale": self.rescale}
        return {"oft_blocks": self.blocks, "alpha": torch.tensor(self.alpha)} | rest

    def turned(self, multiplier: float) -> Self:
        blocks, _ = freed(self.blocks, self.alpha * self.out_features, False, multiplier)
        return dataclasses.replace(self, blocks=blocks, alpha=0.0)

    def rows(self, start: int, stop: int) -> Delta:
        size = self.blocks.shape[2]
        self.border(start, stop, size * 2 ** (len(self.blocks) - 1), self.out_features)
        # The constraint is on the norm of the whole tensor: it must act before the rows part.
        whole = self.turned(1.0) if self.alpha > 0 else self
        rescale = None if self.rescale is None else self.rescale[start:stop]
        return dataclasses.replace(whole, blocks=whole.blocks[:, start // size : stop // size], rescale=rescale)

"""What all rotations share: block stages on channels, and the two sides of a weight that they can act on.

Outputs (LyCORIS, Kohya, PEFT <= 0.13): W' = c * (G W), G mixing the rows of W, the kernel riding along.
Inputs (PEFT >= 0.14, PEFT BOFT, OneTrainer): flat(W)' = c * (flat(W) G^T), flat(W) being (out, in * kernel).
G is a product of stages, each block diagonal in its own channel order; c an optional scale per output.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Delta, f32
from diffadapt.algorithms.forms import (
    Chain,
    ChannelForm,
    Dense,
    Form,
    InputChange,
    OutputChange,
    Permuted,
    Rotate,
    Scale,
    Segments,
    Turns,
    TwoSided,
)
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError

WIDTH = 128
"""Channels of a block in a live rotation: products with narrower ones take no less time than with zeros around them."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One block-diagonal factor of a rotation.

    parts: block matrices less the identity, (k, n, n) float32 each, for consecutive runs of k * n channels.
    order: (channels,) int64, the channel order the blocks see: gathered[a] = v[order[a]]; None: as they come.
    """

    parts: tuple[Tensor, ...]
    order: Tensor | None = None

    def change(self, v: Tensor) -> Tensor:
        """G v - v for v (channels, columns) in float32."""
        moved = v if self.order is None else v.index_select(0, self.order.to(v.device))
        sizes = [part.shape[0] * part.shape[1] for part in self.parts]
        pieces = [
            torch.bmm(part.to(v.device), piece.reshape(*part.shape[:2], -1)).reshape(piece.shape)
            for part, piece in zip(self.parts, torch.split(moved, sizes), strict=True)
        ]
        turned = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return turned if self.order is None else turned.index_select(0, self.order.argsort().to(v.device))

    def within(self, labels: Tensor) -> bool:
        """Whether no block mixes channels of different labels. labels: (channels,) int64."""
        seen = labels if self.order is None else labels[self.order.to(labels.device)]
        runs = torch.split(seen, [part.shape[0] * part.shape[1] for part in self.parts])
        blocks = [run.view(part.shape[:2]) for run, part in zip(runs, self.parts, strict=True)]
        return all(torch.equal(block, block[:, :1].expand_as(block)) for block in blocks)

    def transposed(self) -> Stage:
        return Stage(tuple(part.transpose(-1, -2) for part in self.parts), self.order)

    def times(self, multiplier: float) -> Stage:
        """The stage at a multiplier: m R + (1 - m) I."""
        return Stage(tuple(part * multiplier for part in self.parts), self.order)

    def form(self) -> ChannelForm:
        turns = tuple(Rotate(widened(part)) for part in self.parts)
        sizes = tuple(part.shape[0] * part.shape[1] for part in self.parts)
        inner: ChannelForm = turns[0] if len(turns) == 1 else Segments(turns, sizes)
        return inner if self.order is None else Permuted(inner, self.order, self.order.argsort())


def widened(blocks: Tensor, width: int = WIDTH) -> Tensor:
    """The same block-diagonal matrix in fewer blocks (k / g, g n, g n), of up to `width` channels where k allows it."""
    k, n, _ = blocks.shape
    g = max([1, *[g for g in range(1, min(k, width // n) + 1) if k % g == 0]])  # no `default`: a compiler traces this
    if g == 1:
        return blocks
    spread = torch.diag_embed(blocks.reshape(k // g, g, n, n).permute(0, 2, 3, 1))
    return spread.permute(0, 3, 1, 4, 2).reshape(k // g, g * n, g * n)


Stages = tuple[Stage, ...]


def change(stages: Stages, v: Tensor) -> Tensor:
    """G v - v for v (channels, columns), the first stage first. Summed as a difference: small turns stay exact."""
    total = stages[0].change(v)
    for stage in stages[1:]:
        total = total + stage.change(v + total)
    return total


def transposed(stages: Stages) -> Stages:
    """The stages of G^T."""
    return tuple(stage.transposed() for stage in reversed(stages))


def form(stages: Stages, scale: Tensor | None = None) -> ChannelForm:
    """The channel form of the stages, then of a scale per channel."""
    steps = [stage.form() for stage in stages]
    if scale is not None:
        steps.append(Scale(f32(scale) - 1))
    return steps[0] if len(steps) == 1 else Chain(tuple(steps))


def square_blocks(name: str, role: str, blocks: Tensor, ndim: int) -> Tensor:
    """The tensor, if it is a stack of square blocks of `ndim` axes; else AlgorithmError."""
    if blocks.ndim != ndim or blocks.shape[-1] != blocks.shape[-2] or 0 in blocks.shape:
        raise AlgorithmError(
            f"{name}: {role} {tuple(blocks.shape)} is no stack of square blocks; expected {ndim} axes, "
            "the last two of them equal."
        )
    return blocks


@dataclass(frozen=True, eq=False)
class Rotation(Delta):
    """A delta made of stages. stage: the multiplier of every stage (rule "stage"), 1 in anything read from a file."""

    stage: float = field(default=1.0, kw_only=True)

    @abstractmethod
    def named(self) -> dict[str, Tensor]:
        """The tensors by canonical role, at full strength."""

    @abstractmethod
    def turned(self, multiplier: float) -> Self:
        """The same rotation along its geodesic: the Cayley transform of `multiplier` times the generator."""

    @property
    def row_scale(self) -> Tensor | None:
        """The scale of every output channel (out,), or None."""
        return None

    def near(self, weight: Tensor) -> Self:
        """The rotation with its tensors on the weight's device, where big blocks are solved faster."""
        if all(t.device == weight.device for t in self.named().values()):
            return self
        return self.map_tensors(lambda t: t.to(weight.device))

    def tensors(self) -> dict[str, Tensor]:
        if self.stage != 1:
            raise AlgorithmError(
                f"{self.algorithm}: a rotation at stage strength {self.stage} is no longer orthogonal and has no file "
                "form; write the one at full strength, or use the rule 'geodesic'."
            )
        return self.named()

    @property
    def parameters(self) -> int:
        return sum(t.numel() for t in self.named().values())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # As in Delta, but by the named tensors: those of a stage strength have no file form.
        learning = any(t.requires_grad for t in self.named().values())
        return self.map_learnt(lambda t: copy.deepcopy(t, memo)) if learning else self

    def at_strength(self, multiplier: float, rule: str) -> Delta:
        """Rules: "stage", every stage m R + (1 - m) I with the row scale in full (LyCORIS OFT and BOFT, sd-scripts),
        and "geodesic", the rotation by m times the generator with the row scale in full."""
        if rule == "stage":
            return dataclasses.replace(self, stage=self.stage * multiplier)
        if rule == "geodesic":
            return self.turned(multiplier)
        raise AlgorithmError(f"{self.algorithm} knows no strength rule '{rule}'; use 'linear', 'stage' or 'geodesic'.")

    def misfit(self, layer: Layer, channels: int, side: str) -> AlgorithmError:
        shapes = ", ".join(f"{role} {tuple(t.shape)}" for role, t in self.named().items())
        return AlgorithmError(
            f"{self.algorithm}: {shapes} do not fit the {channels} {side} of a {layer.kind} of shape {layer.shape}. "
            "The adapter is for another model."
        )

    def require(self, layer: Layer, kinds: tuple[str, ...]) -> None:
        if layer.kind not in kinds:
            raise AlgorithmError(
                f"{self.algorithm}: cannot act on a {layer.kind} layer; expected {' or '.join(kinds)}."
            )


TRAINING_WIDTH = 32
"""Channels of a block in training, where a block's gradient costs what the block does."""


@dataclass(frozen=True, eq=False)
class OutputRotation(Rotation):
    """W' = c * (G W). The bias is untouched: trainers rotate it only in modes that no plain base uses."""

    orthogonal: ClassVar[bool] = True
    """Whether every stage is a rotation, its transpose undoing it."""

    @abstractmethod
    def stages(self, channels: int) -> Stages:
        """G for that many output channels, at the multiplier of the stages."""

    def weight_delta(self, weight: Tensor) -> Tensor:
        rows = f32(weight).flatten(1)
        delta = change(self.near(weight).stages(len(rows)), rows)
        if self.row_scale is not None:
            scale = f32(self.row_scale, rows)[:, None]
            delta = delta * scale + rows * (scale - 1)
        return delta.reshape(weight.shape)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        stages = self.stages(layer.out_features)
        groups = torch.arange(layer.out_features) // (layer.out_features // layer.groups)
        if layer.kind == "conv" and not all(stage.within(groups) for stage in stages):
            # A mixed row reads the inputs of its own group, so mixing outputs of two groups is something else.
            return (Dense(self.weight_delta(weight())),)
        return (OutputChange(form(stages, self.row_scale)),)

    def turns(self, channels: int) -> Turns:
        """The stages for training, each of blocks of one size."""
        parts = [stage.parts[0] for stage in self.stages(channels)]
        return Turns(tuple(widened(part, TRAINING_WIDTH) for part in parts), (None,) * len(parts))

    def training_forms(
        self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]
    ) -> tuple[Form, ...]:
        plain = self.orthogonal and self.row_scale is None and self.stage == 1
        if layer.kind != "linear" or not plain:
            return self.forms(layer, weight, bias)
        return (OutputChange(self.turns(layer.out_features)),)

    def border(self, start: int, stop: int, unit: int, channels: int) -> None:
        """Raise AlgorithmError where rows start..stop cut through a unit of channels that rotate together."""
        if start % unit or (stop % unit and stop != channels):
            raise AlgorithmError(
                f"{self.algorithm}: rows {start}..{stop} cut a rotation block of {unit} rows in two; "
                "apply the adapter to the fused weight."
            )


@dataclass(frozen=True, eq=False)
class InputRotation(Rotation):
    """flat(W)' = c * (flat(W) G^T): the module sees G^T x.

    Convolutions with a kernel: the trainers let blocks run over in * kernel positions, so there is no rotation of
    channels, and the live form is the dense change.
    """

    @abstractmethod
    def stages(self, channels: int, conv: bool) -> Stages:
        """G for that many columns of flat(W), at the multiplier of the stages. conv: the weight is a convolution's."""

    def weight_delta(self, weight: Tensor) -> Tensor:
        flat = f32(weight).flatten(1)
        delta = change(self.near(weight).stages(flat.shape[1], weight.ndim > 2), flat.T).T
        if self.row_scale is not None:
            scale = f32(self.row_scale, flat)[:, None]
            delta = delta * scale + flat * (scale - 1)
        return delta.reshape(weight.shape)

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        if math.prod(layer.shape[2:]) > 1:
            return (Dense(self.weight_delta(weight())),)
        stages = self.stages(layer.shape[1], layer.kind == "conv")
        if layer.kind == "embedding":
            return (OutputChange(form(stages)),)
        inputs = form(transposed(stages))
        if self.row_scale is None:
            return (InputChange(inputs),)
        return (TwoSided(inputs, Scale(f32(self.row_scale) - 1)),)

    def ungrouped(self, layer: Layer) -> None:
        if layer.kind == "conv" and layer.groups != 1:
            raise AlgorithmError(
                f"{self.algorithm}: cannot act on a convolution of {layer.groups} groups; no trainer does."
            )

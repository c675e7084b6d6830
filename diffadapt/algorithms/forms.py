"""The live forms: how a delta acts on activations without a dense delta.

A module computes y = W x + b. Every form is linear in its adapter's multiplier m, so forms of any number of adapters
add up in any order and equal the merged weight W + sum_i m_i delta_i(W):

- `LowRank`       y += m * scale * up (down x); the injector concatenates those of all adapters into one pair
- input forms     x' = x + sum m * change(x), and the module computes W x' + b (each delta sees the plain x)
- output forms    y += m * change(W x)
- branch forms    y += m * change(x)
- `TwoSided`      y += m * (g(W f(x)) - W x): one more pass through the module
- `BiasChange`    y += m * vector

`to(device, dtype)` moves a form's tensors; all are float32 (or the file's dtype) until then.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.products import Turning


@dataclass(frozen=True, eq=False)
class Form:
    """A part of a delta's live effect. Fields that are tensors (or forms, or tuples of them) move with `to`."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same form with its floating tensors on `device` in `dtype` (tensors already there are shared)."""

        def move(value: object) -> object:
            if isinstance(value, Tensor):
                return value.to(device, dtype) if value.is_floating_point() else value.to(device)
            if isinstance(value, Form):
                return value.to(device, dtype)
            if isinstance(value, tuple):
                return tuple(move(item) for item in value)
            return value

        return dataclasses.replace(self, **{f.name: move(getattr(self, f.name)) for f in dataclasses.fields(self)})


@dataclass(frozen=True, eq=False)
class LowRank(Form):
    """Delta W = scale * up @ down, exactly.

    down: (r, in) for Linear, (r, in/groups, *kernel) for convolutions, (r, num) for embeddings. up: (out, r); for
    embeddings (dim, r), the delta being transposed. Tensors may be the file's own, in its dtype.
    mask: None, or a function of the progress through denoising, 0 (pure noise) to 1 (clean), that gives (r,) factors of
    the ranks (T-LoRA's ranks follow the timestep).
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0
    mask: Callable[[float], Tensor] | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def dense(self, shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
        """The float32 delta of the weight's `shape`."""
        up = self.up.to(device, torch.float32)
        delta = up @ self.down.to(device, torch.float32).flatten(1)
        delta = delta.mul_(self.scale) if not delta.requires_grad else delta * self.scale
        return delta.reshape(shape)


class ChannelForm(Form, ABC):
    """A form that maps one side's channels: an input form, an output form, or a half of a `TwoSided`."""

    @abstractmethod
    def change(self, v: Tensor, layer: Layer) -> Tensor:
        """f(v) - v for an activation v whose channels lie in `layer.channel_dim`."""


@dataclass(frozen=True, eq=False)
class Scale(ChannelForm):
    """Channels times (1 + excess); excess: (channels,)."""

    excess: Tensor

    def change(self, v: Tensor, layer: Layer) -> Tensor:
        return v * layer.channels(self.excess, v)


@dataclass(frozen=True, eq=False)
class Rotate(ChannelForm):
    """Consecutive channel blocks v_j -> v_j + excess_j v_j; excess: (k, n, n) is the block matrix less the identity.

    Kept as a difference so that small rotations keep their precision in bf16.
    """

    excess: Tensor

    def change(self, v: Tensor, layer: Layer) -> Tensor:
        k, n, _ = self.excess.shape
        if layer.kind == "conv":
            blocks = v.reshape(v.shape[0], k, n, -1)
            return torch.matmul(self.excess, blocks).reshape(v.shape)
        blocks = v.reshape(-1, k, n).transpose(0, 1)
        return torch.bmm(blocks, self.excess.transpose(1, 2)).transpose(0, 1).reshape(v.shape)

    def added(self, v: Tensor, weight: float, out: Tensor, shift: Tensor | None = None) -> Tensor:
        """out = v + weight * change(v - shift), for activations with channels last; `out` may be v itself.

        A run of columns at a time, which stays in a processor's cache between its product and its sum: activations are
        read and written once. Not for autograd. shift: (channels,), the bias that is part of v and is not turned.
        """
        k, n, _ = self.excess.shape
        biases: list[Tensor | None] = [None] * k
        if shift is not None:
            biases[:] = torch.bmm(self.excess, -shift.view(k, n, 1)).view(k, n)
        for run, into, block, bias in zip(
            torch.split(v, n, -1), torch.split(out, n, -1), self.excess, biases, strict=True
        ):
            torch.add(run, F.linear(run, block, bias), alpha=weight, out=into)
        return out


@dataclass(frozen=True, eq=False)
class Permuted(ChannelForm):
    """A channel form in another channel order: gathered[a] = v[order[a]], mapped, then scattered back.

    order, inverse: (channels,) int64, each other's inverse.
    """

    inner: ChannelForm
    order: Tensor
    inverse: Tensor

    def change(self, v: Tensor, layer: Layer) -> Tensor:
        dim = layer.channel_dim
        moved = self.inner.change(v.index_select(dim, self.order), layer)
        return moved.index_select(dim, self.inverse)


@dataclass(frozen=True, eq=False)
class Chain(ChannelForm):
    """Channel forms one after the other (the stages of a butterfly, a rescale behind a rotation)."""

    steps: tuple[ChannelForm, ...]

    def change(self, v: Tensor, layer: Layer) -> Tensor:
        # Summed as a difference: v is never subtracted again, so small changes survive bf16.
        total = self.steps[0].change(v, layer)
        for step in self.steps[1:]:
            total = total + step.change(v + total, layer)
        return total


@dataclass(frozen=True, eq=False)
class Segments(ChannelForm):
    """Consecutive runs of channels, `sizes` long, each with its own form (blocks of several sizes)."""

    parts: tuple[ChannelForm, ...]
    sizes: tuple[int, ...]

    def change(self, v: Tensor, layer: Layer) -> Tensor:
        runs = torch.split(v, list(self.sizes), layer.channel_dim)
        changed = [part.change(run, layer) for part, run in zip(self.parts, runs, strict=True)]
        return torch.cat(changed, layer.channel_dim)


@dataclass(frozen=True, eq=False)
class Turns(ChannelForm):
    """Orthogonal block turns one after the other, for training (see `products.Turning`). excess: (k, n, n) each.

    orders: of each the order (channels,) in which its blocks see the channels and its inverse, or None.
    """

    excess: tuple[Tensor, ...]
    orders: tuple[tuple[Tensor, Tensor] | None, ...]

    def change(self, v: Tensor, layer: Layer) -> Tensor:
        return self.turned(v, None) - v

    def turned(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """R (y - bias) + bias, for channels last."""
        excess = [block.to(y.dtype) for block in self.excess]
        # Autocast would change dtypes within: all of it is in the dtype of y.
        with torch.autocast(y.device.type, enabled=False):
            turned: Tensor = Turning.apply(y, bias, self.orders, *excess)  # type: ignore[no-untyped-call]
        return turned


@dataclass(frozen=True, eq=False)
class Mix(ChannelForm):
    """A low-rank channel mixing v -> v + scale * up (down v); down (r, channels), up (channels, r)."""

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def change(self, v: Tensor, layer: Layer) -> Tensor:
        return layer.pointwise(layer.pointwise(v, self.down), self.up) * self.scale


@dataclass(frozen=True, eq=False)
class InputChange(Form):
    """The delta W f - W: the module sees f(x) in place of x."""

    inner: ChannelForm


@dataclass(frozen=True, eq=False)
class OutputChange(Form):
    """The delta g W - W: the module's product W x (no bias) becomes g(W x)."""

    inner: ChannelForm


@dataclass(frozen=True, eq=False)
class TwoSided(Form):
    """The delta g W f - W: rotated inputs and changed outputs of one adapter."""

    inputs: ChannelForm
    outputs: ChannelForm


class Branch(Form, ABC):
    """A side branch: its own function of the plain input, added to the output."""

    @abstractmethod
    def change(self, x: Tensor, layer: Layer) -> Tensor:
        """What is added to the module's output at multiplier 1."""

    def onto(self, y: Tensor, x: Tensor, layer: Layer, multiplier: float) -> Tensor:
        """y with the change, for training."""
        return torch.add(y, self.change(x, layer).to(y.dtype), alpha=multiplier)


@dataclass(frozen=True, eq=False)
class Dense(Branch):
    """The cached delta itself, the last resort. weight: shape of the module's weight."""

    weight: Tensor

    def change(self, x: Tensor, layer: Layer) -> Tensor:
        return layer.apply(x, self.weight)


@dataclass(frozen=True, eq=False)
class BiasChange(Form):
    """A change of the bias, also where the module has none. vector: (out,)."""

    vector: Tensor

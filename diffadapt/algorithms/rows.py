"""Deltas that act on a part of a weight's rows, or on a weight that is a part: what fused projections need.

Rows of a low-rank pair or of a full difference are simply cut (`Delta.rows`). Where the structure crosses the borders
between q, k and v (a rotation block of 1152 rows on 3 x 3072, magnitudes per input column), the change of one part
depends on the others' weights: `OfFused` reads them. None of these has a file format of its own.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.base import Context, Delta, TensorGroup, f32
from diffadapt.algorithms.forms import BiasChange, Form, LowRank
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class Wrapped(Delta):
    """A delta by way of another one; reports name the inner algorithm."""

    has_file: ClassVar[bool] = False
    """Whether the inner delta's tensors are what a file holds for the module as it is here."""

    inner: Delta

    @property
    def algorithm(self) -> str:  # type: ignore[override]
        return self.inner.algorithm

    @classmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        """None: routing makes these, from what other algorithms parse."""
        return None

    def tensors(self) -> dict[str, Tensor]:
        """The inner delta's tensors, which belong to the module as the trainer saw it."""
        return self.inner.tensors()

    @property
    def rank(self) -> int | None:
        return self.inner.rank

    @property
    def live_only(self) -> str | None:
        return self.inner.live_only

    @property
    @abstractmethod
    def seen_by_trainer(self) -> str:
        """How the trainer's module differs from the one here, in words."""

    def at_strength(self, multiplier: float, rule: str) -> Self:
        return dataclasses.replace(self, inner=self.inner.at_strength(multiplier, rule))


@dataclass(frozen=True, eq=False)
class Exchanged(Wrapped):
    """The trainer's weight has the halves of its rows the other way round (native shift|scale, here scale|shift)."""

    def weight_delta(self, weight: Tensor) -> Tensor:
        return _swapped(self.inner.weight_delta(_swapped(weight)))

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        change = self.inner.bias_delta(None if bias is None else _swapped(bias))
        return None if change is None else _swapped(change)

    def bias_change(self, bias: Tensor | None, weight: Callable[[], Tensor]) -> Tensor | None:
        swapped = None if bias is None else _swapped(bias)
        change = self.inner.bias_change(swapped, lambda: _swapped(weight()))
        return None if change is None else _swapped(change)

    def low_rank(self) -> LowRank | None:
        pair = self.inner.low_rank()
        return None if pair is None else dataclasses.replace(pair, up=_swapped(pair.up))

    def check(self, layer: Layer) -> None:
        if layer.shape[0] % 2:
            raise AlgorithmError(f"{self.algorithm}: expected an even number of rows, of {layer.shape}.")
        self.inner.check(layer)

    @property
    def seen_by_trainer(self) -> str:
        return "the halves of its rows exchanged"


@dataclass(frozen=True, eq=False)
class InRows(Wrapped):
    """The trainer's weight is part `index` of `count` equal parts of the rows here (Ovis' up and gate)."""

    index: int
    count: int

    def _span(self, rows: int) -> tuple[int, int]:
        size = rows // self.count
        return self.index * size, (self.index + 1) * size

    def weight_delta(self, weight: Tensor) -> Tensor:
        start, stop = self._span(weight.shape[0])
        return _padded(self.inner.weight_delta(weight[start:stop]), start, weight.shape[0])

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        if bias is None:
            change = self.inner.bias_delta(None)
            size = 0 if change is None else change.shape[0]
            return None if change is None else _padded(change, self.index * size, self.count * size)
        start, stop = self._span(bias.shape[0])
        change = self.inner.bias_delta(bias[start:stop])
        return None if change is None else _padded(change, start, bias.shape[0])

    def bias_change(self, bias: Tensor | None, weight: Callable[[], Tensor]) -> Tensor | None:
        if bias is None:
            return self.bias_delta(None)
        start, stop = self._span(bias.shape[0])
        change = self.inner.bias_change(bias[start:stop], lambda: weight()[start:stop])
        return None if change is None else _padded(change, start, bias.shape[0])

    def low_rank(self) -> LowRank | None:
        pair = self.inner.low_rank()
        if pair is None:
            return None
        size = pair.up.shape[0]
        return dataclasses.replace(pair, up=_padded(pair.up, self.index * size, self.count * size))

    def check(self, layer: Layer) -> None:
        if layer.shape[0] % self.count:
            raise AlgorithmError(f"{self.algorithm}: expected {self.count} equal parts of the rows of {layer.shape}.")
        self.inner.check(dataclasses.replace(layer, shape=(layer.shape[0] // self.count, *layer.shape[1:])))

    @property
    def seen_by_trainer(self) -> str:
        return f"part {self.index + 1} of {self.count} of it"


@dataclass(frozen=True, eq=False)
class FirstColumns(Wrapped):
    """The trainer's weight is the first `width` input columns here: another adapter has widened the layer."""

    width: int

    def weight_delta(self, weight: Tensor) -> Tensor:
        change = self.inner.weight_delta(weight[:, : self.width])
        return torch.cat([change, change.new_zeros(change.shape[0], weight.shape[1] - self.width)], dim=1)

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        return self.inner.bias_delta(bias)

    def bias_change(self, bias: Tensor | None, weight: Callable[[], Tensor]) -> Tensor | None:
        return self.inner.bias_change(bias, lambda: weight()[:, : self.width])

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        """Low rank stays low rank: the added columns of `down` are zero."""
        pair = self.inner.low_rank()
        if pair is None:
            return super().forms(layer, weight, bias)
        missing = layer.shape[1] - self.width
        down = torch.cat([pair.down, pair.down.new_zeros(pair.down.shape[0], missing)], dim=1)
        change = self.bias_change(bias(), weight)
        main = dataclasses.replace(pair, down=down)
        return (main,) if change is None else (main, BiasChange(change))

    def check(self, layer: Layer) -> None:
        self.inner.check(dataclasses.replace(layer, shape=(layer.shape[0], self.width)))

    @property
    def seen_by_trainer(self) -> str:
        return f"its first {self.width} input columns"


Reader = Callable[[int], Tensor]
"""Gives the base weight of the n-th part of a fused projection, without any adapter merged in."""


@dataclass(frozen=True, eq=False)
class OfFused(Wrapped):
    """The trainer's weight is fused of this one and others, and the change of the rows here depends on all of them.

    index: which part this is. siblings: the module paths of all parts, in order. shares: their parts of the rows, in
    proportion. read: where their base weights come from; `bound` gives it.
    """

    index: int
    siblings: tuple[str, ...]
    shares: tuple[int, ...]
    read: Reader | None = None

    def bound(self, read: Reader) -> OfFused:
        """The same delta with access to the weights of the other parts."""
        return dataclasses.replace(self, read=read)

    def _span(self, rows: int) -> tuple[int, int]:
        unit = rows // self.shares[self.index]
        start = unit * sum(self.shares[: self.index])
        return start, start + rows

    def weight_delta(self, weight: Tensor) -> Tensor:
        """Raises AlgorithmError before the delta is placed on a model: the other parts' weights are needed."""
        read = self.read
        if read is None:
            raise AlgorithmError(
                f"{self.algorithm}: the change of this part of a fused projection depends on the weights of "
                f"{', '.join(self.siblings)}; it is known only once the adapter is on a model."
            )
        parts = [weight if i == self.index else read(i).to(weight.device) for i in range(len(self.siblings))]
        start, stop = self._span(weight.shape[0])
        return self.inner.weight_delta(torch.cat([f32(part) for part in parts]))[start:stop]

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        change = self.inner.bias_delta(None)
        if change is None:
            return None
        unit = change.shape[0] // sum(self.shares)
        start = unit * sum(self.shares[: self.index])
        return change[start : start + unit * self.shares[self.index]]

    def check(self, layer: Layer) -> None:
        unit, rest = divmod(layer.shape[0], self.shares[self.index])
        if rest:
            raise AlgorithmError(
                f"{self.algorithm}: {layer.shape[0]} rows cannot be {self.shares[self.index]} of {sum(self.shares)} "
                "parts of a fused projection. The adapter is for another model."
            )
        self.inner.check(dataclasses.replace(layer, shape=(unit * sum(self.shares), *layer.shape[1:])))

    @property
    def seen_by_trainer(self) -> str:
        return f"one module fused of {', '.join(self.siblings)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copied model reads its own weights."""
        return dataclasses.replace(super().__deepcopy__(memo), read=copy.deepcopy(self.read, memo))


def _swapped(tensor: Tensor) -> Tensor:
    """The halves of the first dimension exchanged; float32 where it is computed with."""
    return tensor.roll(tensor.shape[0] // 2, 0)


def _padded(part: Tensor, start: int, total: int) -> Tensor:
    """The rows of `part` from `start` on among `total` rows, zero elsewhere."""
    before = part.new_zeros(start, *part.shape[1:])
    after = part.new_zeros(total - start - part.shape[0], *part.shape[1:])
    return torch.cat([before, part, after])

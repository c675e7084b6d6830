"""The contract of an algorithm: one file, one frozen dataclass of named tensors, its maths and its recognition.

An algorithm knows tensors and modules, never models, files or strengths: every quantity here is at full strength, and
the one place that multiplies by a strength is the injector. Truth is what the trainer's training forward computes.
"""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from diffadapt.algorithms.bank import Bank
from diffadapt.algorithms.forms import BiasChange, Dense, Form, LowRank
from diffadapt.algorithms.group import Context as Context
from diffadapt.algorithms.group import TensorGroup as TensorGroup
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.peft_fields import Fields
from diffadapt.algorithms.start import Start
from diffadapt.errors import AlgorithmError


@dataclass(frozen=True, eq=False)
class Delta(ABC):
    """The change of one module's weight (and bias) by one adapter, at full strength."""

    algorithm: ClassVar[str]
    """The name that reports show: "lora", "loha", ..."""

    kept: ClassVar[frozenset[str]] = frozenset({"bank"})
    """Fields whose tensors stay as they are while the others are trained."""

    options: ClassVar[Mapping[str, Any]] = {}
    """What `fresh` takes beside rank and alpha: name -> default."""

    @classmethod
    def fresh(cls, start: Start) -> Delta:
        """The untrained delta of a module, as the trainer of this algorithm begins. Tensors in float32 on the CPU.

        Raises AlgorithmError for a layer, a rank or an option that the algorithm cannot have.
        """
        raise AlgorithmError(f"{cls.algorithm}: has no beginning of its own here; load a file with trainable=True.")

    @classmethod
    @abstractmethod
    def parse(cls, group: TensorGroup, context: Context) -> Self | None:
        """Take this algorithm's tensors from the group, or return None and leave it untouched.

        Raises AlgorithmError for tensors that are this algorithm's but do not fit together.
        """

    @abstractmethod
    def weight_delta(self, weight: Tensor) -> Tensor:
        """The float32 change of `weight` (its shape, its device), exactly what the trainer's forward would add.

        weight: the base weight in any floating dtype, never one with another adapter merged in.
        """

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by canonical role, to write the delta back; `parse` of them gives an equal delta."""

    @abstractmethod
    def check(self, layer: Layer) -> None:
        """Raise AlgorithmError where the delta cannot belong to a layer of this kind and shape."""

    def bias_delta(self, bias: Tensor | None) -> Tensor | None:
        """The float32 change (out,) of the bias, or None. `bias`: the base bias, None where the module has none."""
        return None

    def bias_change(self, bias: Tensor | None, weight: Callable[[], Tensor]) -> Tensor | None:
        """`bias_delta` where the base weight is at hand, which the bias of PEFT's GLoRA depends on."""
        return self.bias_delta(bias)

    def low_rank(self) -> LowRank | None:
        """The exact low-rank form of the weight's change, where there is one that needs no base weight."""
        return None

    @property
    def shape_alone(self) -> tuple[int, ...] | None:
        """The shape of the weight's change where the tensors alone make it, None where the base weight takes part.

        Where it is given, `weight_delta` reads nothing of its argument but shape and device.
        """
        pair = self.low_rank()
        return None if pair is None else (pair.up.shape[0], *pair.down.shape[1:])

    def forms(self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]) -> tuple[Form, ...]:
        """The live effect, as parts that are each linear in the multiplier. `weight()` and `bias()`: the base's."""
        pair = self.low_rank()
        main: Form = pair if pair is not None else Dense(self.weight_delta(weight()))
        change = self.bias_change(bias(), weight)
        return (main,) if change is None else (main, BiasChange(change))

    def training_forms(
        self, layer: Layer, weight: Callable[[], Tensor], bias: Callable[[], Tensor | None]
    ) -> tuple[Form, ...]:
        """`forms` while the tensors are being trained, at multiplier 1: what gradients flow through."""
        return self.forms(layer, weight, bias)

    def prepared(self, weight: Callable[[], Tensor]) -> Delta:
        """The same delta for training: what follows from the base weight alone is worked out once, and kept."""
        return self

    def settled(self) -> Delta:
        """The delta as files hold it, where training had a form of its own."""
        return self

    def row_products(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """<W_o, dW_o> and |dW_o|^2 for every output row o, (out,) float32 each: what norms of W + dW are made of."""
        base, change = f32(weight).flatten(1), self.weight_delta(weight).flatten(1)
        return (base * change).sum(1), change.square().sum(1)

    @property
    def rank(self) -> int | None:
        """The rank, where the algorithm has one."""
        return None

    @property
    def live_only(self) -> str | None:
        """Why this delta cannot be merged (it depends on the timestep), or None."""
        return None

    @property
    def bank_tensors(self) -> Mapping[str, Tensor]:
        """What a file holds once for all its modules, by role: tensors of the Bank."""
        return {}

    def peft_fields(self, module: str) -> Fields | None:
        """What PEFT's config must say for these tensors to mean this delta; None where PEFT has no such method.

        module: the module's whole name in the model that PEFT wraps, for fields that name modules.
        """
        return None

    def peft_tensors(self) -> dict[str, Tensor]:
        """The tensors as PEFT's own files hold them, where that is not as everywhere."""
        return self.tensors()

    @property
    def parameters(self) -> int:
        """How many numbers the delta is made of."""
        return sum(t.numel() for t in self.tensors().values())

    def rows(self, start: int, stop: int) -> Delta:
        """The delta of the output rows start..stop, for fused projections. Raises AlgorithmError where rows cannot
        be separated (a rotation block or a column norm that crosses the border)."""
        raise AlgorithmError(f"{self.algorithm}: the rows of a fused module cannot be separated.")

    def at_strength(self, multiplier: float, rule: str) -> Delta:
        """The delta whose full effect is this one's at `multiplier` under a trainer's own, non-linear rule.

        The linear rule needs no such delta. Raises AlgorithmError for a rule that this algorithm does not know.
        """
        raise AlgorithmError(f"{self.algorithm} knows no strength rule '{rule}'; use the default, 'linear'.")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies of a pipeline share its frozen deltas; only tensors that are being trained are copied."""
        learning = any(t.requires_grad for t in self.tensors().values())
        return self.map_learnt(lambda t: copy.deepcopy(t, memo)) if learning else self

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same delta with every tensor replaced by `change(tensor)` (a move, a cast, a trainable copy)."""

        return self._mapped(change, Delta.map_tensors, frozenset({"bank"}))  # which belongs to others too

    def map_learnt(self, change: Callable[[Tensor], Tensor]) -> Self:
        """`map_tensors` for the tensors that training changes, without those that are `kept`."""
        return self._mapped(change, Delta.map_learnt, self.kept)

    def learnt(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """The tensors that training changes, by the names of their fields, in the order of `map_learnt`."""

        def walk(name: str, value: object) -> Iterator[tuple[str, Tensor]]:
            if isinstance(value, Tensor):
                yield name, value
            elif isinstance(value, Delta):
                yield from value.learnt(f"{name}.")
            elif isinstance(value, tuple):
                for place, item in enumerate(value):
                    yield from walk(f"{name}.{place}", item)
            elif isinstance(value, Bank):
                yield from value.tensors.items()

        for field_ in dataclasses.fields(self):
            if field_.name not in self.kept:
                yield from walk(prefix + field_.name, getattr(self, field_.name))

    def _mapped(self, change: Callable[[Tensor], Tensor], inner: Callable[..., Delta], kept: frozenset[str]) -> Self:
        def apply(value: object) -> object:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, Delta):
                return inner(value, change)
            if isinstance(value, tuple):
                return tuple(apply(item) for item in value)
            return value.mapped(change) if isinstance(value, Bank) else value

        names = (f.name for f in dataclasses.fields(self) if f.name not in kept)
        return dataclasses.replace(self, **{name: apply(getattr(self, name)) for name in names})


def f32(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """The tensor in float32, on the device of `like`: all deltas accumulate there and round once, at the end."""
    return tensor.to(device=like.device if like is not None else None, dtype=torch.float32)


def expect_shape(algorithm: str, seen: tuple[int, ...], layer: Layer) -> None:
    """Raise AlgorithmError unless a delta of the flattened shape `seen` (out, in * kernel) fits the layer."""
    rows, *rest = layer.shape
    columns = 1
    for size in rest:
        columns *= size
    if tuple(seen) != (rows, columns):
        raise AlgorithmError(
            f"{algorithm}: the adapter's change has shape {tuple(seen)}, the {layer.kind} weight is {layer.shape} "
            f"(flattened {(rows, columns)}). The adapter is for another model, or its rank and size axes are swapped."
        )

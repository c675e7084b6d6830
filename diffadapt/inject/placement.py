"""Placing an adapter: every delta at its module, every key accounted for, and nothing changed until all of it fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from diffadapt.adapter import Adapter, Foreign, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from diffadapt.algorithms.rows import OfFused
from diffadapt.errors import AlgorithmError, StackError, TargetError
from diffadapt.inject.allocation import Allocation
from diffadapt.inject.embeddings import InstalledEmbeddings
from diffadapt.inject.entry import Entry
from diffadapt.inject.finding import find, leftover_keys
from diffadapt.inject.fitting import fitted, siblings
from diffadapt.inject.learner import Learner
from diffadapt.inject.locate import Component, describe
from diffadapt.inject.merging import BaseWeight, MergedWeights, Wanted
from diffadapt.inject.prefix import InstalledPrefixes
from diffadapt.inject.scaling import Strength, Targets
from diffadapt.inject.schedule import START, Moment, Number, Schedule, value_at
from diffadapt.inject.table import is_called
from diffadapt.report import LoadReport


class UnmatchedKeysWarning(UserWarning):
    """Some keys of a file found no module in the pipeline."""


LINEAR = "linear"
"""The strength rule of everything unless asked otherwise: W' = W + m * delta(W)."""


@dataclass(eq=False)
class Placement:
    """One delta at its module, and the strength it has there.

    key: (component, the path this model has); source: the key the adapter has for it. rule: "linear", or a trainer's
    own rule, under which every strength has a delta of its own (made from `delta`, the file's). called: whether the
    model calls the module; if not, what is in force is in its parameters (see `tables`).
    """

    key: TargetKey
    source: TargetKey | Foreign
    module: nn.Module
    layer: Layer
    entry: Entry
    delta: Delta
    rule: str = LINEAR
    called: bool = True
    value: float = 0.0
    schedule: Schedule | None = None

    @property
    def number(self) -> Number:
        """The strength as it was put."""
        return self.value if self.schedule is None else self.schedule

    def put(self, number: Number, moment: Moment = START) -> bool:
        """Take a strength, a scheduled one as it is at a moment; whether the entry's delta is another one now."""
        self.schedule = number if isinstance(number, Schedule) else None
        # Text encoders run before the first step, so what the last run came to says nothing about them.
        value = value_at(number, START if "encoder" in self.key.component else moment)
        changed = self.rule != LINEAR and value not in (0.0, self.value)
        if changed:
            self.entry.delta = self.delta.at_strength(value, self.rule)
        self.value = value
        return changed

    def move(self, device: torch.device | str | int) -> None:
        """Keep the delta's tensors on a device."""

        def moved(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                return tensor.to(device)
            tensor.data = tensor.data.to(device)  # still the parameter that an optimizer holds
            return tensor

        same = self.entry.delta is self.delta
        self.delta = self.delta.map_tensors(moved)
        self.entry.delta = self.delta if same else self.entry.delta.map_tensors(moved)

    @property
    def multiplier(self) -> float:
        """What the entry's delta is multiplied by at this strength."""
        return self.value if self.rule == LINEAR else float(self.value != 0.0)


Hidden: TypeAlias = "Callable[[str, TargetKey], bool]"
"""Whether an adapter, by name, is out of force at a module, or merged into its weight."""


@dataclass(eq=False)
class Loaded:
    """An adapter on a pipeline: its placements and the strength in force, as it was given."""

    name: str
    adapter: Adapter
    placements: list[Placement]
    report: LoadReport
    embeddings: InstalledEmbeddings
    prefixes: InstalledPrefixes
    learner: Learner | None = None
    strength: Strength = 0.0
    allocation: Allocation | None = None

    @property
    def values(self) -> list[float]:
        """The strength at every placement."""
        return [p.value for p in self.placements]

    @property
    def numbers(self) -> list[Number]:
        """The strength at every placement, as it was put."""
        return [p.number for p in self.placements]

    @property
    def keys(self) -> list[TargetKey]:
        return [p.key for p in self.placements]

    @cached_property
    def targets(self) -> Targets:
        """The keys, for strengths by block."""
        return Targets(self.keys)

    @property
    def hooked(self) -> list[Placement]:
        """The placements at modules that are called; the others are at tables."""
        return [p for p in self.placements if p.called]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What is trained: of the deltas, the tokens and the prefixes."""
        own = [] if self.learner is None else list(self.learner.parameters())
        return own + self.embeddings.parameters + self.prefixes.parameters

    @property
    def trained_modules(self) -> list[nn.Module]:
        """The modules that hold `parameters`."""
        own: list[nn.Module] = [] if self.learner is None else [self.learner]
        tokens = [step.source for step in self.embeddings.steps if self.embeddings.trainable]
        prefixes = [source for _, _, source in self.prefixes.steps if self.prefixes.trainable]
        return own + tokens + prefixes

    def rename(self, name: str) -> None:
        self.name = name
        self.report = dataclasses.replace(self.report, name=name)
        for placement in self.placements:
            placement.entry.owner = name

    def current_adapter(self) -> Adapter:
        """The adapter with the tensors as they are now: those that training has changed."""
        if self.learner is None:
            return self.adapter
        now = {p.source: self.learner.plain(p.entry.delta) for p in self.placements}
        learnt = self.with_deltas(now)
        return dataclasses.replace(learnt, embeddings=self.embeddings.current(), prefixes=self.prefixes.current())

    def with_deltas(self, deltas: Mapping[TargetKey | Foreign, Delta]) -> Adapter:
        """The adapter with other deltas at some of the keys that it has."""
        targets = {key: delta for key, delta in deltas.items() if isinstance(key, TargetKey)}
        foreign = {key: delta for key, delta in deltas.items() if isinstance(key, Foreign)}
        old = self.adapter
        return dataclasses.replace(old, targets={**old.targets, **targets}, foreign={**old.foreign, **foreign})


def mix_of(placements: Iterable[Placement], factor: float = 1.0) -> dict[TargetKey, Wanted]:
    """What the weights are to hold of these placements, at their strengths times `factor`."""
    mix: dict[TargetKey, Wanted] = {}
    for p in placements:
        if p.value != 0.0:
            mix.setdefault(p.key, Wanted(p.module, p.layer, [])).deltas.append((p.multiplier * factor, p.entry.delta))
    return mix


def _rule(delta: Delta, rule: str) -> str:
    """The rule, where the delta knows it; what does not is linear under every rule (a LoRA beside a DoRA)."""
    if rule != LINEAR:
        try:
            delta.at_strength(0.5, rule)
        except AlgorithmError:
            return LINEAR
    return rule


def place(
    adapter: Adapter,
    name: str,
    parts: Mapping[str, Component],
    *,
    merged: MergedWeights,
    rule: str,
    strict: bool,
    learner: Learner | None,
    owner: Any,
) -> Loaded:
    """Find and check a module for every delta. Changes nothing.

    learner: takes the tensors of an adapter that is to be trained. merged: what is merged into the modules now, for
    deltas that need the base weights of others.
    Raises TargetError where nothing matches, a shape differs, or (`strict`) a key is left over; StackError for a
    strength rule that none of the deltas knows.
    """
    found, missing = find(adapter, parts)
    embeddings = InstalledEmbeddings.plan(adapter, owner, learner is not None)
    prefixes = InstalledPrefixes.plan(adapter, parts, learner is not None)
    total = len(adapter.targets) + len(adapter.foreign)
    if not found and not embeddings.tokens and not prefixes.steps:
        raise TargetError(
            f"{adapter.source}: none of its {total} modules is in this pipeline. The file is a {adapter.dialect} "
            f"adapter for {adapter.family or 'an unknown family'}; the pipeline is {describe(owner)}"
            + (f", and has no module {missing[0]!r}." if missing else ".")
        )
    placements = []
    for source, (key, delta) in found.items():
        modules = parts[key.component].modules
        module = modules[key.module]
        delta, layer = _checked(adapter, key, delta, module, owner)
        if isinstance(delta, OfFused):
            delta = delta.bound(siblings(delta, key, parts[key.component], merged, adapter.source))
        if learner is not None:
            delta = learner.hold(key, delta.prepared(BaseWeight(merged, key, module)))
        entry, called = Entry(name, delta, 0.0, learner), is_called(key.module, modules)
        placements.append(Placement(key, source, module, layer, entry, delta, _rule(delta, rule), called))
    if rule != LINEAR and all(p.rule == LINEAR for p in placements):
        raise StackError(
            f"{adapter.source}: none of its algorithms ({', '.join(adapter.algorithms)}) has a rule {rule!r}."
        )
    leftover = leftover_keys(adapter, found)
    report = _report(adapter, name, placements, total, leftover, missing, (embeddings, prefixes))
    lost = leftover or tuple(missing)
    if strict and lost:
        raise TargetError(
            f"{adapter.source}: {len(lost)} keys match nothing in {describe(owner)}, and strict=True: "
            f"{', '.join(lost[:8])}"
        )
    if learner is not None:
        learner.done()
    allocation = None if learner is None else Allocation.of([placement.entry for placement in placements])
    return Loaded(name, adapter, placements, report, embeddings, prefixes, learner, allocation=allocation)


def _checked(adapter: Adapter, key: TargetKey, delta: Delta, module: nn.Module, owner: Any) -> tuple[Delta, Layer]:
    """A delta as its module takes it, and the layer that the module is. Raises TargetError where they do not fit."""
    layer = Layer.of(module)
    try:
        if layer is None:
            raise AlgorithmError(f"{type(module).__name__} has no weight to act on.")
        delta, layer = fitted(key.module, delta, layer)
        delta.check(layer)
    except AlgorithmError as error:
        raise TargetError(
            f"{adapter.source}: {'.'.join(key)} does not fit: {error} The file is for "
            f"{adapter.family or 'an unknown family'}; the pipeline is {describe(owner)}."
        ) from error
    return delta, layer


def _report(
    adapter: Adapter,
    name: str,
    placements: list[Placement],
    total: int,
    leftover: tuple[str, ...],
    missing: list[str],
    text: tuple[InstalledEmbeddings, InstalledPrefixes],
) -> LoadReport:
    about = adapter.metadata
    return LoadReport(
        name, adapter.source, adapter.dialect, adapter.evidence, adapter.family,
        {p.key: p.entry.delta.algorithm for p in placements}, total, adapter.ignored, leftover, tuple(missing),
        tuple(text[0].tokens), about.trainer, about.base_model, about.ranks, about.alphas, about.trigger_words,
        tuple(text[1].names),
    )  # fmt: skip

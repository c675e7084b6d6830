"""Placing an adapter: every delta at its module, every key accounted for, and nothing changed until all of it fits."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.adapter import Adapter, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import AlgorithmError, TargetError
from diffadapt.inject.embeddings import InstalledEmbeddings
from diffadapt.inject.locate import Component
from diffadapt.inject.scaling import Strength
from diffadapt.inject.slot import Entry
from diffadapt.report import LoadReport


class UnmatchedKeysWarning(UserWarning):
    """Some keys of a file found no module in the pipeline."""


@dataclass(frozen=True, eq=False)
class Placement:
    """One delta at its module. key: (component, the path this model has); source: the key the adapter has for it."""

    key: TargetKey
    source: TargetKey
    module: nn.Module
    layer: Layer
    entry: Entry


@dataclass(eq=False)
class Loaded:
    """An adapter on a pipeline: its placements, the strength in force and its value at every placement."""

    name: str
    adapter: Adapter
    placements: list[Placement]
    report: LoadReport
    embeddings: InstalledEmbeddings
    strength: Strength = 1.0
    values: list[float] = field(default_factory=list)

    @property
    def keys(self) -> list[TargetKey]:
        return [p.key for p in self.placements]

    @property
    def parameters(self) -> list[nn.Parameter]:
        found = [t for p in self.placements if p.entry.trainable for t in p.entry.delta.tensors().values()]
        return [t for t in found if isinstance(t, nn.Parameter)]

    def rename(self, name: str) -> None:
        self.name = name
        self.report = dataclasses.replace(self.report, name=name)
        for placement in self.placements:
            placement.entry.owner = name

    def current_adapter(self) -> Adapter:
        """The adapter with the tensors as they are now: those that training has changed."""
        if not self.parameters:
            return self.adapter
        now = {p.source: p.entry.delta.map_tensors(lambda t: t.detach().clone()) for p in self.placements}
        return dataclasses.replace(self.adapter, targets={**self.adapter.targets, **now})


def _trainable(delta: Delta) -> Delta:
    """A copy whose floating tensors are float32 parameters."""

    def own(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return nn.Parameter(tensor.detach().to(torch.float32, copy=True))

    return delta.map_tensors(own)


Found = dict[TargetKey, tuple[TargetKey, Delta]]


def _find(adapter: Adapter, parts: Mapping[str, Component]) -> tuple[Found, list[str]]:
    """source key -> (key in this pipeline, delta) for what finds a module, and the names of what does not."""
    found: Found = {}
    missing: list[str] = []
    for key, delta in adapter.targets.items():
        component = parts.get(key.component)
        path = component.resolve(key.module) if component is not None else None
        if path is None:
            missing.append(".".join(key))
        else:
            found[key] = (TargetKey(key.component, path), delta)
    for name, delta in adapter.foreign.items():
        for component in parts.values():
            if name.component in (None, component.name) and (path := component.resolve_foreign(name.module, name.flat)):
                key = TargetKey(component.name, path)
                found[key] = (key, delta)
                break
        else:
            missing.append(name.module)
    return found, missing


def _leftover_keys(
    adapter: Adapter, placed: Mapping[TargetKey, Any], parts: Mapping[str, Component]
) -> tuple[str, ...]:
    keys = list(adapter.unmatched)
    for target, names in adapter.keys.items():
        if target not in placed:
            keys += names
    for foreign, names in adapter.foreign_keys.items():
        resolved = any(
            TargetKey(c.name, c.resolve_foreign(foreign.module, foreign.flat) or "") in placed for c in parts.values()
        )
        if not resolved:
            keys += names
    return tuple(keys)


def place(
    adapter: Adapter, name: str, parts: Mapping[str, Component], *, strict: bool, trainable: bool, owner: Any
) -> Loaded:
    """Find and check a module for every delta. Changes nothing.

    Raises TargetError where nothing matches, a shape differs, or (`strict`) a key is left over.
    """
    found, missing = _find(adapter, parts)
    embeddings = InstalledEmbeddings.plan(adapter, owner)
    total = len(adapter.targets) + len(adapter.foreign)
    if not found and not embeddings.tokens:
        raise TargetError(
            f"{adapter.name}: none of its {total} modules is in this pipeline. The file is a {adapter.dialect} adapter "
            f"for {adapter.family or 'an unknown family'}; the pipeline is {describe(owner)}"
            + (f", and has no module {missing[0]!r}." if missing else ".")
        )
    placements = []
    for source, (key, delta) in found.items():
        module = parts[key.component].modules[key.module]
        layer = Layer.of(module)
        try:
            if layer is None:
                raise AlgorithmError(f"{type(module).__name__} has no weight to act on.")
            delta.check(layer)
        except AlgorithmError as error:
            raise TargetError(
                f"{adapter.name}: {'.'.join(key)} does not fit: {error} The file is for "
                f"{adapter.family or 'an unknown family'}; the pipeline is {describe(owner)}."
            ) from error
        entry = Entry(name, _trainable(delta) if trainable else delta, 0.0, trainable)
        placements.append(Placement(key, source, module, layer, entry))
    leftover = _leftover_keys(adapter, {**found, **{key: None for key, _ in found.values()}}, parts)
    report = _report(adapter, name, placements, total, leftover, missing, embeddings)
    if leftover or missing:
        message = f"{adapter.name}: {len(leftover) or len(missing)} keys match nothing in {describe(owner)}"
        if strict:
            raise TargetError(f"{message}, and strict=True: {', '.join((leftover or tuple(missing))[:8])}")
        warnings.warn(f"{message}; applied {len(placements)} of {total} modules.", UnmatchedKeysWarning, stacklevel=5)
    return Loaded(name, adapter, placements, report, embeddings)


def _report(
    adapter: Adapter,
    name: str,
    placements: list[Placement],
    total: int,
    leftover: tuple[str, ...],
    missing: list[str],
    embeddings: InstalledEmbeddings,
) -> LoadReport:
    about = adapter.metadata
    return LoadReport(
        name, adapter.name, adapter.dialect, adapter.evidence, adapter.family,
        {p.key: p.entry.delta.algorithm for p in placements}, total, adapter.ignored, leftover, tuple(missing),
        tuple(embeddings.tokens), about.trainer, about.base_model, about.ranks, about.alphas, about.trigger_words,
    )  # fmt: skip


def describe(owner: Any) -> str:
    """The pipeline's or model's class, with what tells its family."""
    model = getattr(owner, "unet", None) or getattr(owner, "transformer", None) or owner
    width = getattr(getattr(model, "config", None), "cross_attention_dim", None)
    return f"a {type(owner).__name__}" + (f" (cross-attention width {width})" if width else "")

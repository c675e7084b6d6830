"""Which adapter acts in which component and how strongly, as Diffusers keeps it, written onto `pipe.adapters`.

Diffusers activates adapters per component, remembers the weight of those that are inactive, and fuses per component
and adapter. `pipe.adapters` has one strength per adapter and stays the truth: what somebody sets there directly is
taken up before anything else is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

from diffadapt.inject.merge import Remember
from diffadapt.inject.scaling import Strength
from diffadapt.inject.stack import PipelineAdapters
from diffadapt.report import MergeReport


@dataclass
class Mix:
    """active: component -> the adapters in force there, in the order they were named. weights: (component, adapter) ->
    weight, kept while inactive. fused: component -> the adapters its weights hold. written: what the stack was told."""

    active: dict[str, list[str]] = field(default_factory=dict)
    weights: dict[tuple[str, str], Strength] = field(default_factory=dict)
    fused: dict[str, list[str]] = field(default_factory=dict)
    written: dict[str, Strength] = field(default_factory=dict)

    def copy(self) -> Mix:
        return deepcopy(self)

    def weight(self, component: str, name: str) -> Strength:
        return self.weights.get((component, name), 1.0)

    def activate(self, component: str, names: Iterable[str]) -> None:
        """Put exactly these in force in a component. Fused ones stay in its weights all the same, as in Diffusers."""
        self.active[component] = list(names)

    def forget(self, name: str) -> None:
        """Drop an adapter that was deleted."""
        for group in (*self.active.values(), *self.fused.values()):
            if name in group:
                group.remove(name)
        self.weights = {key: weight for key, weight in self.weights.items() if key[1] != name}
        self.written.pop(name, None)

    def renamed(self, old: str, new: str) -> Mix:
        """The mix with one adapter in another's place."""

        def swap(groups: Mapping[str, list[str]]) -> dict[str, list[str]]:
            return {component: [new if n == old else n for n in names] for component, names in groups.items()}

        weights = {(component, new if n == old else n): weight for (component, n), weight in self.weights.items()}
        return Mix(swap(self.active), weights, swap(self.fused), dict(self.written))

    def acts(self, component: str, name: str) -> bool:
        return name in self.active.get(component, ()) or name in self.fused.get(component, ())

    def strength(self, name: str, components: Iterable[str]) -> Strength:
        """An adapter's strength on the stack; one number where all its components agree."""
        parts = {c: self.weight(c, name) if self.acts(c, name) else 0.0 for c in components}
        first = next(iter(parts.values()), 1.0)
        if isinstance(first, (int, float)) and all(value == first for value in parts.values()):
            return first
        return parts


def components_of(stack: PipelineAdapters, name: str) -> list[str]:
    """The components an adapter acts on."""
    return list(dict.fromkeys(key.component for key in stack.values(name)))


def taken_up(mix: Mix, stack: PipelineAdapters) -> Mix:
    """The mix with what was done through `pipe.adapters` since it was last written."""
    mix = mix.copy()
    for name in {*mix.written} - {*stack.names}:
        mix.forget(name)
    for name, strength in stack.strengths.items():
        if name not in mix.written or mix.written[name] != strength:
            _adopt(mix, stack, name, strength)
    if stack.enabled:  # else no weight holds any adapter, and those that were fused will be again
        mix.fused = {component: list(names) for component, names in stack.merged_parts.items()}
    return mix


def _adopt(mix: Mix, stack: PipelineAdapters, name: str, strength: Strength) -> None:
    values = stack.numbers(name)
    components = components_of(stack, name)
    for component in components:
        own = {key.module: value for key, value in values.items() if key.component == component}
        group = mix.active.setdefault(component, [])
        if not any(own.values()):
            mix.active[component] = [other for other in group if other != name]
            continue
        if name not in group:
            group.append(name)
        if isinstance(strength, Mapping) and components == [c for c in components if c in strength]:
            mix.weights[component, name] = strength[component]
        else:
            mix.weights[component, name] = own if isinstance(strength, Mapping) else strength
    mix.written[name] = strength


def write(mix: Mix, stack: PipelineAdapters, remember: Remember = "code") -> tuple[Mix, MergeReport | None]:
    """Bring the stack to a mix. Raises what the stack raises, with the stack as it was."""
    before, merged = stack.strengths, stack.merged_parts
    wanted = {name: mix.strength(name, components_of(stack, name)) for name in stack.names}
    fused = {component: tuple(names) for component, names in mix.fused.items() if names}
    report = None
    if not fused and (merged or not stack.enabled):
        stack.unmerge()
    try:
        stack.set(wanted)
        if fused and fused != merged:
            report = stack.merge(fused, remember=remember)
    except BaseException:
        stack.set(before)
        if merged and not fused:
            stack.merge(merged, remember=remember)
        raise
    mix = mix.copy()
    mix.written = stack.strengths
    return mix, report

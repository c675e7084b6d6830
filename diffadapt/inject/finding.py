"""Which module of a pipeline each delta of an adapter is for, and which keys of its file are for none."""

from __future__ import annotations

from collections.abc import Mapping

from diffadapt.adapter import Adapter, Foreign, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.inject.locate import Component

Found = dict[TargetKey | Foreign, tuple[TargetKey, Delta]]


def place_of(name: TargetKey | Foreign, parts: Mapping[str, Component]) -> TargetKey | None:
    """The component and the path that a pipeline has for a target; None where it has none."""
    if isinstance(name, Foreign):
        named = (part for part in parts.values() if name.component in (None, part.name))
        found = ((part.name, part.resolve_foreign(name.module, name.flat)) for part in named)
        return next((TargetKey(part, path) for part, path in found if path), None)
    component = parts.get(name.component)
    path = component.resolve(name.module) if component is not None else None
    return None if component is None or path is None else TargetKey(component.name, path)


def find(adapter: Adapter, parts: Mapping[str, Component]) -> tuple[Found, list[str]]:
    """source key -> (key in this pipeline, delta) for what finds a module, and the names of what does not."""
    found: Found = {}
    missing: list[str] = []
    of_prior = "prior" in adapter.components
    for key, delta in adapter.targets.items():
        place = place_of(TargetKey(_part_of(key.component, of_prior, parts), key.module), parts)
        if place is None:
            missing.append(".".join(key))
        else:
            found[key] = (place, delta)
    for name, delta in adapter.foreign.items():
        place = place_of(name, parts)
        if place is None:
            missing.append(name.module)
        else:
            found[name] = (place, delta)
    return found, missing


def _part_of(name: str, of_prior: bool, parts: Mapping[str, Component]) -> str:
    """What the pipeline calls a component: pipelines of a prior and a decoder put `prior_` before the prior's own."""
    return f"prior_{name}" if of_prior and f"prior_{name}" in parts else name


def leftover_keys(adapter: Adapter, found: Found) -> tuple[str, ...]:
    """The keys of the adapter's file that act on nothing here."""
    placed = {*found, *(key for key, _ in found.values())}
    keys = list(adapter.unmatched)
    for names in (names for target, names in adapter.keys.items() if target not in placed):
        keys += names
    for names in (names for target, names in adapter.foreign_keys.items() if target not in placed):
        keys += names
    return tuple(keys)

"""Which shapes the weight of a module has in the full-size models of a family."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from diffadapt.families.model import Layout, Shape


def _skeleton(path: str) -> str:
    """A module path or a layout's pattern with every number, and every place for one, as the same sign."""
    return ".".join("#" if part.isdigit() or part.startswith("{") else part for part in path.split("."))


def weight_shapes(families: Iterable[str], component: str, module: str) -> tuple[Shape, ...]:
    """The shapes that occur for a component's module, (out, in, *kernel) each; () where no family knows it."""
    return tuple(shape for family in families for shape in _shapes(family, component).get(_skeleton(module), ()))


def is_loose_parameter(families: Iterable[str], component: str, path: str) -> bool:
    """Whether a path is a parameter that belongs to no layer (a table, a gate) in the full-size models of families."""
    return any(_skeleton(path) in _loose(family, component) for family in families)


@cache
def _loose(family: str, component: str) -> frozenset[str]:
    layout = _layout(family, component)
    return frozenset(map(_skeleton, layout.parameters)) if layout is not None else frozenset()


@cache
def _shapes(family: str, component: str) -> dict[str, tuple[Shape, ...]]:
    layout = _layout(family, component)
    found: dict[str, tuple[Shape, ...]] = {}
    for pattern, shapes in layout.modules.items() if layout is not None else ():
        found[_skeleton(pattern)] = (*found.get(_skeleton(pattern), ()), *shapes)
    return found


def _layout(family: str, component: str) -> Layout | None:
    """The measurement of a component's full-size model."""
    from diffadapt.families import family_named

    known = family_named(family)
    names = known.components.get(component) if known is not None else None
    return names.model.measured if names is not None and names.model is not None else None

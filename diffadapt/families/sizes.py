"""Which shapes the weight of a module has in the full-size models of a family."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from diffadapt.families.model import Shape


def _skeleton(path: str) -> str:
    """A module path or a layout's pattern with every number, and every place for one, as the same sign."""
    return ".".join("#" if part.isdigit() or part.startswith("{") else part for part in path.split("."))


def weight_shapes(families: Iterable[str], component: str, module: str) -> tuple[Shape, ...]:
    """The shapes that occur for a component's module, (out, in, *kernel) each; () where no family knows it."""
    return tuple(shape for family in families for shape in _shapes(family, component).get(_skeleton(module), ()))


@cache
def _shapes(family: str, component: str) -> dict[str, tuple[Shape, ...]]:
    from diffadapt.families import family_named

    known = family_named(family)
    names = known.components.get(component) if known is not None else None
    if names is None or names.model is None:
        return {}
    found: dict[str, tuple[Shape, ...]] = {}
    for pattern, shapes in names.model.measured.modules.items():
        found[_skeleton(pattern)] = (*found.get(_skeleton(pattern), ()), *shapes)
    return found

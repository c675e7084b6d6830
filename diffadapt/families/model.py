"""One model class in full size: its modules by pattern, their shapes and the depth of its blocks, as measured data.

`layouts/NAME.json` holds the measurement, made from the class itself by `python -m diffadapt.families.measure` and held
against it by a test: reading a file needs neither the class nor the library that has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """modules: pattern (`blocks.{i}.attn.to_q`) -> the weight shapes that occur under it, (out, in, *kernel).
    parameters: the same for parameters that belong to no layer (tables, gates, padding tokens).
    depths: pattern of a list of blocks -> how many it holds.
    """

    modules: Mapping[str, tuple[Shape, ...]]
    parameters: Mapping[str, tuple[Shape, ...]]
    depths: Mapping[str, int]

    def rows(self, pattern: str) -> int | None:
        """Output rows of a module's weight, or None where they vary or the pattern is unknown."""
        found = {shape[0] for shape in self.modules.get(pattern, ())}
        return found.pop() if len(found) == 1 else None


@dataclass(frozen=True, eq=False)
class Model:
    """A class with the configuration of one published size.

    layout: the name of its measurement. cls: "diffusers.FluxTransformer2DModel". config: what differs from the class's
    own defaults. also: pattern -> weight shapes of other releases that differ from this one in single modules only.
    """

    layout: str
    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    also: Mapping[str, tuple[Shape, ...]] = field(default_factory=dict)

    @cached_property
    def measured(self) -> Layout:
        text = files("diffadapt.families").joinpath("layouts", f"{self.layout}.json").read_text("utf-8")
        layout = layout_from(json.loads(text))
        widened = {pattern: (*layout.modules[pattern], *shapes) for pattern, shapes in self.also.items()}
        return replace(layout, modules={**layout.modules, **widened})


def layout_from(plain: Mapping[str, Any]) -> Layout:
    """The layout that a measurement's JSON describes."""

    def shapes(table: Mapping[str, Any]) -> dict[str, tuple[Shape, ...]]:
        return {pattern: tuple(tuple(shape) for shape in found) for pattern, found in table.items()}

    return Layout(shapes(plain["modules"]), shapes(plain["parameters"]), dict(plain["depths"]))

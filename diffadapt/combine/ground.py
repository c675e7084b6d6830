"""What a combination stands on: the base's weights where a pipeline was given, and the shapes that the family has."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from torch import Tensor, nn

from diffadapt.adapter import Foreign, TargetKey
from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from diffadapt.errors import CombineError
from diffadapt.families.sizes import weight_shapes
from diffadapt.inject.locate import Component, components, weight_of


class Ground:
    """The base of a combination. base: a pipeline or model, or None. families: what the adapters may be for."""

    def __init__(self, base: Any, families: tuple[str, ...]) -> None:
        self._base, self._families = base, families

    @property
    def given(self) -> bool:
        """Whether there is a base."""
        return self._base is not None

    @cached_property
    def _components(self) -> dict[str, Component]:
        if getattr(getattr(self._base, "adapters", None), "merged", False):
            raise CombineError("the base has adapters merged into it; unmerge them first: base.adapters.unmerge().")
        return components(self._base) if self.given else {}

    def _module(self, target: TargetKey | Foreign) -> nn.Module | None:
        component = self._components.get(target.component or "")
        if component is None:
            return None
        if isinstance(target, Foreign):
            path = component.resolve_foreign(target.module, target.flat)
        else:
            path = component.resolve(target.module)
        return component.modules[path] if path is not None else None

    def shape(self, target: TargetKey | Foreign) -> tuple[int, ...] | None:
        """The shape of a target's weight in the base; None where there is none."""
        module = self._module(target)
        layer = Layer.of(module) if module is not None else None
        return layer.shape if layer is not None else None

    def usual_shapes(self, target: TargetKey | Foreign) -> tuple[tuple[int, ...], ...]:
        """The shapes that the target has in the full-size models of the families."""
        if isinstance(target, Foreign):
            return ()
        return weight_shapes(self._families, target.component, target.module)

    def weight(self, target: TargetKey | Foreign, owner: str, delta: Delta) -> Tensor:
        """The base weight of a target. Raises CombineError where it is not to be had, naming who wants it."""
        module = self._module(target)
        if module is None:
            wanted = "it is not in the given base" if self.given else "give the pipeline: combine(..., base=pipe)"
            raise CombineError(f"the {delta.algorithm} of {owner} depends on the base weight; {wanted}.")
        return weight_of(module)

    def bias(self, target: TargetKey | Foreign) -> Tensor | None:
        """The base bias of a target, or None."""
        module = self._module(target)
        found = getattr(module, "bias", None)
        return found if isinstance(found, Tensor) else None

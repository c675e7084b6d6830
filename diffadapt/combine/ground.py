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
from diffadapt.inject.finding import place_of
from diffadapt.inject.locate import Component, components, weight_of
from diffadapt.inject.view import StackView


class Ground:
    """The base of a combination. base: a pipeline or model, or None. families: what the adapters may be for."""

    def __init__(self, base: Any, families: tuple[str, ...]) -> None:
        self._base, self._families = base, families
        stack = getattr(base, "adapters", None)
        self._stack = stack if isinstance(stack, StackView) else None

    @property
    def given(self) -> bool:
        """Whether there is a base."""
        return self._base is not None

    @cached_property
    def parts(self) -> dict[str, Component]:
        """The base's models by component name; none where there is no base."""
        return components(self._base) if self.given else {}

    def place(self, target: TargetKey | Foreign) -> TargetKey | None:
        """The component and the path that the base has for a target; None where it has none."""
        return place_of(target, self.parts)

    def _at(self, place: TargetKey) -> nn.Module:
        return self.parts[place.component].modules[place.module]

    def shape(self, target: TargetKey | Foreign) -> tuple[int, ...] | None:
        """The shape of a target's weight in the base; None where there is none."""
        place = self.place(target)
        layer = Layer.of(self._at(place)) if place is not None else None
        return layer.shape if layer is not None else None

    def usual_shapes(self, target: TargetKey | Foreign) -> tuple[tuple[int, ...], ...]:
        """The shapes that the target has in the full-size models of the families."""
        if isinstance(target, Foreign):
            return ()
        return weight_shapes(self._families, target.component, target.module)

    def weight(self, target: TargetKey | Foreign, owner: str, delta: Delta) -> Tensor:
        """The base weight of a target, without what is merged into it now. Raises CombineError where it is not to be
        had, naming who wants it."""
        place = self.place(target)
        if place is None:
            wanted = "it is not in the given base" if self.given else "give the pipeline: combine(..., base=pipe)"
            raise CombineError(f"the {delta.algorithm} of {owner} depends on the base weight; {wanted}.")
        remembered = None if self._stack is None else self._stack.base_weight(place)
        return weight_of(self._at(place)) if remembered is None else remembered

    def bias(self, target: TargetKey | Foreign) -> Tensor | None:
        """The base bias of a target, without what is merged into it now; or None."""
        place = self.place(target)
        if place is None:
            return None
        remembered = None if self._stack is None else self._stack.base_bias(place)
        found = getattr(self._at(place), "bias", None) if remembered is None else remembered
        return found if isinstance(found, Tensor) else None

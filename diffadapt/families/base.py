"""The contract of a family: which components a model has, how trainers name their modules, and how to tell it apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

from diffadapt.families.names import Names


class Width(NamedTuple):
    """A module whose input width tells families apart: the ends of its Diffusers path, and the width here."""

    component: str
    leaves: tuple[str, ...]
    inputs: int


@dataclass(frozen=True, eq=False)
class Family:
    """One model family, as data.

    components: a pipeline's component -> its names.
    slots: what dialects call a component (see `dialects.base.Slot`) -> component. One that is missing is not there.
    widths: what shapes say. attention: the attention containers of the full-size model -> their depth; () if untold.
    base_models: lower-case beginnings of what metadata call it. native: whether Kohya files use the original names.
    inside: components that trainers keep inside the denoiser -> what they call their modules there.
    rare: never the first guess without a width or a name that says so.
    """

    name: str
    components: Mapping[str, Names]
    slots: Mapping[str, str]
    widths: tuple[Width, ...] = ()
    attention: Mapping[str, int] = field(default_factory=dict)
    base_models: tuple[str, ...] = ()
    native: bool = False
    inside: Mapping[str, Names] = field(default_factory=dict)
    rare: bool = False

    @lru_cache(maxsize=4096)  # noqa: B019  (families are few, and live as long as the program)
    def names_of(self, slot: str | None) -> tuple[tuple[str, Names], ...]:
        """The components that a slot may mean, likeliest first: all where the file does not say; none."""
        if slot is None:
            return tuple(self.components.items())
        component = self.slots.get(slot)
        if component is None:
            return ()
        # Tools that train a ControlNet keep the prefix of the model it was made from.
        parts = [component, "controlnet"] if slot == "denoiser" and "controlnet" in self.components else [component]
        inner = self.inside.items() if component == self.slots.get("denoiser") else ()
        return (*((part, self.components[part]) for part in parts), *inner)

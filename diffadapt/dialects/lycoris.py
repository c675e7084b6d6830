"""The LyCORIS wrapper: `lycoris_` before the flat name of whatever model it was given. SimpleTuner uses it too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.base import Context
from diffadapt.dialects.base import COMPONENT_WORD, ContextOf, Facts, Key, Slot
from diffadapt.dialects.kohya import Kohya
from diffadapt.families.base import Family

_PREFIX = "lycoris_"
# The wrapper stores alpha with each module; the run's defaults in the config must not stand in for one.
_RUN_DEFAULTS = frozenset({"r", "lora_alpha", "alpha"})


class Lycoris(Kohya):
    """No component is named: the module names tell."""

    name = "lycoris"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {_PREFIX: None}
    writer: ClassVar[str] = "lycoris"

    def behind(self, slot: Slot | None, module: str, role: str) -> Key:
        return super().behind(slot, COMPONENT_WORD.sub("", module.lstrip("_")), role)

    def contexts(self, facts: Facts) -> ContextOf:
        given: Mapping[str, Any] = (facts.config or {}).get("lycoris_config") or {}
        config = {name: value for name, value in given.items() if name not in _RUN_DEFAULTS}
        context = Context("lycoris", config, facts.alpha, facts.metadata)
        return lambda slot, module: context

    def module_of(self, target: TargetKey, family: Family | None) -> str:
        return target.module

    def prefix_of(self, target: TargetKey, family: Family | None) -> str:
        return _PREFIX

"""The LyCORIS wrapper: `lycoris_` before the flat name of whatever model it was given. SimpleTuner uses it too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.base import Context
from diffadapt.dialects.base import ContextOf, Facts, Key, Slot
from diffadapt.dialects.kohya import Kohya
from diffadapt.families.base import Family

_PREFIX = "lycoris_"
# Wrapped around a whole pipeline, the component comes first: `lycoris_transformer_transformer_blocks_0_...`.
_COMPONENT = re.compile(
    r"(?:transformer|unet)_(?=(?:single_)?transformer_blocks_|(?:down|up)_blocks_|mid_block_|(?:double|single)_blocks_)"
)
# The wrapper stores alpha with each module; the run's defaults in the config must not stand in for one.
_RUN_DEFAULTS = frozenset({"r", "lora_alpha", "alpha"})


class Lycoris(Kohya):
    """No component is named: the module names tell."""

    name = "lycoris"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {_PREFIX: None}
    writer: ClassVar[str] = "lycoris"

    def behind(self, slot: Slot | None, module: str, role: str) -> Key:
        module = _COMPONENT.sub("", module.lstrip("_"))
        return Key(slot, module, role, "." not in module)

    def contexts(self, facts: Facts) -> ContextOf:
        given: Mapping[str, Any] = (facts.config or {}).get("lycoris_config") or {}
        config = {name: value for name, value in given.items() if name not in _RUN_DEFAULTS}
        context = Context("lycoris", config, facts.alpha, facts.metadata)
        return lambda slot, module: context

    def module_of(self, target: TargetKey, family: Family | None) -> str:
        return target.module

    def prefix_of(self, target: TargetKey, family: Family | None) -> str:
        return _PREFIX

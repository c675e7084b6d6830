"""OneTrainer's own names (its format LEGACY): Diffusers' module names behind the component's; flat for the families
that it has trained longest, dotted for the others; the endings are Kohya's.

Such files are read as Kohya's and Diffusers', whose prefixes they have; here they are written. Its other formats are
those of ComfyUI, Diffusers and Kohya. Source: what its own savers gave for its models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import Slot
from diffadapt.dialects.kohya import Kohya
from diffadapt.dialects.roles import KOHYA_SPELLING
from diffadapt.errors import DialectError
from diffadapt.families.base import Family

_FLAT = ("sd", "flux1", "chroma", "pixart", "hunyuan_video")
"""Families by the beginning of their names."""


class OneTrainer(Kohya):
    """`lora_unet_`, `lora_transformer_`, `lora_te1_`, or `transformer.`."""

    name = "onetrainer"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {}
    writer: ClassVar[str] = "onetrainer"

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        if family is not None and family.name == "stable_cascade":
            raise DialectError(f"{self.name}: its names of Stable Cascade's modules are its own; write kohya.")
        if family is None or family.name.startswith(_FLAT) or role not in KOHYA_SPELLING:
            return super().join(target, role, family)
        return f"{target.component}.{target.module}.{KOHYA_SPELLING[role]}"

    def module_of(self, target: TargetKey, family: Family | None) -> str:
        return target.module

    def prefix_of(self, target: TargetKey, family: Family | None) -> str:
        return "lora_transformer_" if target.component == "transformer" else super().prefix_of(target, family)

"""ComfyUI's generic keys: `diffusion_model.` and `text_encoders.clip_l.transformer.`, with any known module names.

Writers: OneTrainer's COMFY (with alpha), ai-toolkit (LoRA without alpha), SimpleTuner, merge tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import Facts, Key, Slot
from diffadapt.dialects.diffusers import dotted_writer
from diffadapt.dialects.dotted import Dotted
from diffadapt.dialects.kohya import DENOISERS
from diffadapt.dialects.roles import COMFY_SPELLING, split_role, unnamed
from diffadapt.errors import DialectError
from diffadapt.families.base import Family


class Comfy(Dotted):
    """Dotted names behind ComfyUI's own prefixes."""

    name = "comfy"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {
        "diffusion_model.": "denoiser", "model.diffusion_model.": "denoiser", "text_encoders.": None,
        "lora_te.": "text_encoder",
    }  # fmt: skip
    writer: ClassVar[str] = "ai_toolkit"

    def split(self, key: str) -> Key | None:
        if not key.startswith("text_encoders."):
            return super().split(key)
        ending = split_role(key)
        _, encoder, module = (*(ending.module if ending else "").split(".", 2), "", "")[:3]
        # ComfyUI's own name of the encoder is the slot: families know which of theirs it is.
        return Key(encoder, module.removeprefix("transformer."), ending.role, False) if ending and module else None

    def writer_of(self, facts: Facts) -> str:
        # ai-toolkit drops the alpha of LoRA and trains with alpha = rank; whoever keeps it follows Kohya's rule.
        own = "lora_down" in facts.roles and "alpha" not in facts.roles
        return dotted_writer(
            facts, self.writer if own or "ai-toolkit" in facts.metadata.get("software", "") else "kohya"
        )

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        ending = COMFY_SPELLING.get(role)
        if ending is None:
            raise unnamed("comfy", role, target.module)
        if family is not None and target.component in family.inside:
            inner = family.inside[target.component].native_name(target.module)
            return f"diffusion_model.{inner or target.module}.{ending}"
        if target.component in DENOISERS or not target.component:
            names = family.components.get(target.component) if family else None
            native = names.native_name(target.module) if names else None
            return f"diffusion_model.{native or target.module}.{ending}"
        slots = family.slots if family else {}
        own = [slot for slot, part in slots.items() if part == target.component and not slot.startswith("text_encoder")]
        encoder = next(iter(own), None)
        if encoder is None:
            raise DialectError(f"comfy: has no prefix for the component '{target.component}'.")
        return f"text_encoders.{encoder}.transformer.{target.module}.{ending}"

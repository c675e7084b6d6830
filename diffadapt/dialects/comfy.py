"""ComfyUI's generic keys: `diffusion_model.` and `text_encoders.clip_l.transformer.`, with any known module names.

Writers: OneTrainer's COMFY (with alpha), ai-toolkit (LoRA without alpha), SimpleTuner, merge tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import Facts, Slot
from diffadapt.dialects.diffusers import dotted_writer
from diffadapt.dialects.dotted import Dotted
from diffadapt.dialects.kohya import DENOISERS
from diffadapt.dialects.roles import COMFY_SPELLING
from diffadapt.errors import DialectError
from diffadapt.families.base import Family

_ENCODERS = ("clip_l", "clip_g", "clip_h", "t5xxl", "t5xl", "t5base", "pile_t5xl", "hydit_clip", "mt5xl")


class Comfy(Dotted):
    """Dotted names behind ComfyUI's own prefixes."""

    name = "comfy"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {
        "diffusion_model.": "denoiser", "model.diffusion_model.": "denoiser",
        **{f"text_encoders.{encoder}.transformer.": encoder for encoder in _ENCODERS},
        **{f"text_encoders.{encoder}.": encoder for encoder in _ENCODERS},
        "lora_te.": "text_encoder",
    }  # fmt: skip
    writer: ClassVar[str] = "ai_toolkit"

    def writer_of(self, facts: Facts) -> str:
        # ai-toolkit drops the alpha of LoRA and trains with alpha = rank; whoever keeps it follows Kohya's rule.
        own = "lora_down" in facts.roles and "alpha" not in facts.roles
        return dotted_writer(
            facts, self.writer if own or "ai-toolkit" in facts.metadata.get("software", "") else "kohya"
        )

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        ending = COMFY_SPELLING.get(role)
        if ending is None:
            raise DialectError(f"comfy: has no name for the tensor '{role}' of {target.module}.")
        if target.component in DENOISERS or not target.component:
            names = family.components.get(target.component) if family else None
            native = names.native_name(target.module) if names else None
            return f"diffusion_model.{native or target.module}.{ending}"
        slots = family.slots if family else {}
        encoder = next((slot for slot in _ENCODERS if slots.get(slot) == target.component), None)
        if encoder is None:
            raise DialectError(f"comfy: has no prefix for the component '{target.component}'.")
        return f"text_encoders.{encoder}.transformer.{target.module}.{ending}"

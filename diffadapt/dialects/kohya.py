"""Kohya: `lora_unet_` and `lora_te1_` before the module with underscores for dots; original or Diffusers names.

Writers: sd-scripts, the LyCORIS plugin, OneTrainer (KOHYA, LEGACY), musubi, ai-toolkit. sd-scripts' own OFT has the
same names behind `oft_unet_`, and other maths than LyCORIS' OFT behind `lora_unet_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.algorithms.base import Context
from diffadapt.dialects.base import ContextOf, Facts, Key, Prefixed, Slot
from diffadapt.dialects.roles import KOHYA_SPELLING, unnamed
from diffadapt.errors import DialectError
from diffadapt.families.base import Family


class Kohya(Prefixed):
    """Flat names behind a prefix that ends in an underscore."""

    name = "kohya"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {
        "lora_unet_": "denoiser", "lora_te_": "text_encoder", "lora_te1_": "text_encoder",
        "lora_te2_": "text_encoder_2", "lora_te3_": "text_encoder_3", "lora_te4_": "text_encoder_4",
        "lora_transformer_": "transformer", "lora_prior_unet_": "prior", "lora_prior_te_": "prior_text_encoder",
    }  # fmt: skip
    writer: ClassVar[str] = "kohya"

    def behind(self, slot: Slot | None, module: str, role: str) -> Key:
        # Underscores around the name stand for a nameless root or leaf of the trainer's wrapper; some write a dot
        # before the last number (`to_out.0`) in some of a module's keys.
        return Key(slot, module.strip("_").replace(".", "_"), role, True)

    def contexts(self, facts: Facts) -> ContextOf:
        context = Context(writer_of(facts, self.writer), {}, facts.alpha, facts.metadata)
        return lambda slot, module: context

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        ending = KOHYA_SPELLING.get(role)
        if ending is None:
            raise unnamed(self.name, role, target.module)
        return f"{self.prefix_of(target, family)}{self.module_of(target, family).replace('.', '_')}.{ending}"

    def module_of(self, target: TargetKey, family: Family | None) -> str:
        """The name after the prefix, dotted: the original code's where the trainer of this family uses it."""
        if family is None or not family.native or target.component not in family.components:
            return target.module
        if target.component in family.inside:
            return family.inside[target.component].native_name(target.module) or target.module
        names = family.components[target.component]
        return names.native_name(target.module) or target.module if target.component in DENOISERS else target.module

    def prefix_of(self, target: TargetKey, family: Family | None) -> str:
        if family is not None and target.component in family.inside:
            return "lora_unet_"
        numbered = family is not None and "text_encoder_2" in family.components
        prefix = {
            "": "lora_unet_", "unet": "lora_unet_", "transformer": "lora_unet_", "controlnet": "lora_unet_",
            "text_encoder": "lora_te1_" if numbered else "lora_te_",
            "text_encoder_2": "lora_te2_", "text_encoder_3": "lora_te3_", "text_encoder_4": "lora_te4_",
            "prior": "lora_prior_unet_",
        }.get(target.component)  # fmt: skip
        if prefix is None:
            raise DialectError(f"{self.name}: has no prefix for the component '{target.component}'.")
        return prefix


class KohyaOFT(Kohya):
    """sd-scripts' own OFT."""

    name = "kohya_oft"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {
        "oft_unet_": "denoiser", "oft_te_": "text_encoder", "oft_te1_": "text_encoder", "oft_te2_": "text_encoder_2",
        "oft_te3_": "text_encoder_3",
    }  # fmt: skip
    writer: ClassVar[str] = "kohya_oft"

    def prefix_of(self, target: TargetKey, family: Family | None) -> str:
        return super().prefix_of(target, family).replace("lora_", "oft_", 1)


DENOISERS = frozenset({"unet", "transformer"})


def writer_of(facts: Facts, default: str) -> str:
    """Whose conventions hold: the names alone do not tell OneTrainer and LyCORIS from Kohya, but the header may."""
    if default == "kohya_oft":
        return default
    if "ot_branch" in facts.metadata or "ot_config" in facts.metadata or "oft_R" in facts.roles:
        return "onetrainer"
    return "lycoris" if facts.metadata.get("ss_network_module", "").startswith("lycoris") else default

"""What the dotted dialects share: prefixes that may be nested, and contexts from PEFT configs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from diffadapt.algorithms.base import Context
from diffadapt.dialects.base import ContextOf, Facts, Key, Prefixed, Slot
from diffadapt.dialects.peft_config import configs_of

PEFT_PREFIX = "base_model.model."
COMPONENTS: Mapping[str, Slot] = {
    "unet.": "unet", "transformer.": "transformer", "controlnet.": "controlnet", "prior.": "prior",
    "text_encoder.": "text_encoder", "text_encoder_2.": "text_encoder_2", "text_encoder_3.": "text_encoder_3",
    "text_encoder_4.": "text_encoder_4", "transformer_2.": "transformer_2", "text_conditioner.": "text_conditioner",
}  # fmt: skip
_ALIASES: Mapping[str, Slot] = {"transformer_1.": "transformer", "conditional_transformer.": "transformer"}
_NAMED = {**COMPONENTS, **_ALIASES}
_ROOTS = ("net.", "core.")
"""Roots of trainers' own wrappers around a denoiser (OneTrainer's and SimpleTuner's Anima)."""


class Dotted(Prefixed):
    """Module names with their dots, behind a prefix that says the component, or nothing."""

    writer: ClassVar[str]

    def behind(self, slot: Slot | None, module: str, role: str) -> Key:
        slot, module = unwrap(slot, module)
        return Key(slot, module, role, False)

    def contexts(self, facts: Facts) -> ContextOf:
        configs = configs_of(facts.metadata, facts.config)
        writer = self.writer_of(facts)
        plain = Context(writer, {}, facts.alpha, facts.metadata, facts.bank)

        def context(slot: Slot | None, module: str) -> Context:
            config = configs.get(slot) or configs.get("unet" if slot == "denoiser" else None) or configs.get(None)
            if config is None:
                return plain
            return Context(writer, config.of(module), facts.alpha, facts.metadata, facts.bank)

        return context

    @abstractmethod
    def writer_of(self, facts: Facts) -> str:
        """Whose conventions hold in this file."""


def unwrap(slot: Slot | None, module: str) -> tuple[Slot | None, str]:
    """Strip the wrappers of PEFT, once per wrap, and the component's name behind them."""
    while True:
        if module.startswith(PEFT_PREFIX):
            module = module[len(PEFT_PREFIX) :]
            continue
        if module.startswith(_ROOTS) and slot in (None, "denoiser", "transformer"):
            module = module.partition(".")[2]
            continue
        found = next((prefix for prefix in _NAMED if module.startswith(prefix)), None) if slot is None else None
        # OpenCLIP's own `transformer.resblocks` is a module, not the component of that name.
        if found is None or module.startswith("transformer.resblocks."):
            return slot, module
        slot, module = _NAMED[found], module[len(found) :]

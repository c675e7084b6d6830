"""Diffusers: a component's name before Diffusers' module names; `lora_A`/`lora_B`, or the older `lora.down`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import Facts, Slot
from diffadapt.dialects.dotted import COMPONENTS, Dotted
from diffadapt.dialects.peft_config import METADATA_KEY
from diffadapt.dialects.roles import PEFT_SPELLING, unnamed
from diffadapt.families.base import Family


class Diffusers(Dotted):
    """The files of `save_lora_weights`, SimpleTuner, OneTrainer's DIFFUSERS and its older OMI layout."""

    name = "diffusers"
    prefixes: ClassVar[Mapping[str, Slot | None]] = COMPONENTS
    writer: ClassVar[str] = "diffusers"

    def writer_of(self, facts: Facts) -> str:
        return dotted_writer(facts, self.writer)

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        ending = PEFT_SPELLING.get(role)
        if ending is None or f"{target.component}." not in COMPONENTS:
            raise unnamed("diffusers", role, f"{target.component} {target.module}")
        return f"{target.component}.{target.module}.{ending}"


def dotted_writer(facts: Facts, default: str) -> str:
    """PEFT's where its own config is beside the file. OneTrainer's rotations look like PEFT's, without a config."""
    if facts.config and facts.config.get("peft_type"):
        return "peft"
    configured = METADATA_KEY in facts.metadata or bool(facts.config)
    if "ot_branch" in facts.metadata or "ot_config" in facts.metadata or ("oft_R" in facts.roles and not configured):
        return "onetrainer"
    return default

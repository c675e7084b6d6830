"""No prefix at all: `save_attn_procs`, `save_lora_adapter`, a PEFT state dict, OneTrainer's ORIGINAL names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import COMPONENT_WORD, Facts, Key, Recognition, Slot, evidence
from diffadapt.dialects.diffusers import dotted_writer
from diffadapt.dialects.dotted import Dotted, unwrap
from diffadapt.dialects.roles import PEFT_SPELLING, split_role, unnamed
from diffadapt.families.base import Family


class Bare(Dotted):
    """Comes last: claims whatever has an adapter's roles behind dotted names."""

    name = "bare"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {}
    writer: ClassVar[str] = "diffusers"

    def recognise(self, keys: Collection[str]) -> Recognition | None:
        return evidence(keys, _is_adapter_key, "name a tensor of an adapter behind a module without any prefix")

    def split(self, key: str) -> Key | None:
        ending = split_role(key)
        if ending is None:
            return None
        slot, module = unwrap(None, ending.module)
        flat = "." not in module
        return Key(slot, COMPONENT_WORD.sub("", module) if flat else module, ending.role, flat)

    def writer_of(self, facts: Facts) -> str:
        return dotted_writer(facts, self.writer)

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        ending = PEFT_SPELLING.get(role)
        if ending is None:
            raise unnamed("bare", role, target.module)
        return f"{target.module}.{ending}"


def _is_adapter_key(key: str) -> bool:
    ending = split_role(key)
    return ending is not None and ending.role not in ("weight", "bias") and ending.module != ""

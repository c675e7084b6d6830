"""Diffusers before 0.19: LoRA in attention processors, `...attn1.processor.to_q_lora.down.weight`.

Text encoders of that time: `self_attn.to_q_lora.down.weight` for q_proj. Sources: `load_attn_procs` and
`LoraLoaderMixin` of Diffusers 0.16 to 0.18.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import Facts, Key, Recognition, Slot, evidence
from diffadapt.dialects.dotted import Dotted, unwrap
from diffadapt.errors import DialectError
from diffadapt.families.base import Family

_ROLES = {"down.weight": "lora_down", "up.weight": "lora_up", "alpha": "alpha"}
_UNET = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0", "add_k_proj": "add_k_proj",
         "add_v_proj": "add_v_proj"}  # fmt: skip
_ENCODER = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


class AttentionProcessors(Dotted):
    """The module is what precedes `processor.` and the projection's old name."""

    name = "attention_processors"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {}
    writer: ClassVar[str] = "diffusers"

    def recognise(self, keys: Collection[str]) -> Recognition | None:
        return evidence(keys, _is_old, "hold '.processor.' or '.self_attn.' before a '_lora.' tensor")

    def split(self, key: str) -> Key | None:
        if not _is_old(key):
            return None
        path, _, role = key.rpartition("_lora.")
        block, _, projection = path.rpartition(".")
        slot, block = unwrap(None, block)
        processor = block.endswith(".processor")
        leaf = (_UNET if processor else _ENCODER).get(projection)
        if leaf is None or role not in _ROLES:
            return None
        return Key(slot, f"{block.removesuffix('.processor')}.{leaf}", _ROLES[role], False)

    def writer_of(self, facts: Facts) -> str:
        return self.writer

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        old = {new: name for name, new in _UNET.items()} if target.component == "unet" else {}
        ending = {tensor: name for name, tensor in _ROLES.items()}.get(role)
        for leaf, name in old.items():
            if ending is not None and target.module.endswith(f".{leaf}"):
                block = target.module.removesuffix(f".{leaf}")
                return f"unet.{block}.processor.{name}_lora.{ending}"
        raise DialectError(f"{self.name}: has no name for '{role}' of {target.module}; write diffusers instead.")


def _is_old(key: str) -> bool:
    return "_lora." in key and (".processor." in key or ".self_attn." in key) and "_blocks.processor" not in key

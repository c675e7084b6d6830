"""PEFT: `base_model.model.` before the names of the model that was wrapped; r and alpha in adapter_config.json."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import Facts, Key, Recognition, Slot, evidence
from diffadapt.dialects.dotted import PEFT_PREFIX, Dotted
from diffadapt.dialects.roles import peft_ending, split_role, unnamed
from diffadapt.families.base import Family

_REPLACED = {"weight": "set_weight", "bias": "set_bias"}
_SHARED = "base_model."


class Peft(Dotted):
    """The files of `PeftModel.save_pretrained`."""

    name = "peft"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {PEFT_PREFIX: None}
    writer: ClassVar[str] = "peft"

    def recognise(self, keys: Collection[str]) -> Recognition | None:
        return super().recognise(keys) or evidence(
            keys, lambda key: self.split_shared(key) is not None, "are of a whole PEFT model"
        )

    def split(self, key: str) -> Key | None:
        found = super().split(key)
        if found is None:
            return self.split_shared(key)
        if found.role not in _REPLACED:
            return found
        # `modules_to_save`, `bias="all"`: whole tensors that take the place of the model's.
        module = found.module.removesuffix(".base_layer")
        return found._replace(module=module, role=_REPLACED[found.role])

    def split_shared(self, key: str) -> Key | None:
        """`base_model.vera_A`: a tensor that all modules share."""
        ending = split_role(key) if key.startswith(_SHARED) else None
        return None if ending is None or ending.module != "base_model" else Key(None, "", ending.role, False)

    def writer_of(self, facts: Facts) -> str:
        return "peft"

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        ending = peft_ending(role)
        if ending is None:
            raise unnamed("peft", role, target.module)
        return self.join_ending(target, ending)

    @staticmethod
    def join_ending(target: TargetKey, ending: str) -> str:
        """The key with an ending that depends on the file's method (see `peft_writing.endings`)."""
        return f"{PEFT_PREFIX}{target.module}.{ending}"

    def join_shared(self, role: str) -> str:
        """The key of a tensor that all modules share."""
        return f"{_SHARED}{role}"

"""PEFT: `base_model.model.` before the names of the model that was wrapped; r and alpha in adapter_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import Facts, Key, Slot
from diffadapt.dialects.dotted import PEFT_PREFIX, Dotted
from diffadapt.dialects.roles import PEFT_SPELLING
from diffadapt.errors import DialectError
from diffadapt.families.base import Family

_REPLACED = {"weight": "set_weight", "bias": "set_bias"}


class Peft(Dotted):
    """The files of `PeftModel.save_pretrained`."""

    name = "peft"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {PEFT_PREFIX: None}
    writer: ClassVar[str] = "peft"

    def split(self, key: str) -> Key | None:
        found = super().split(key)
        if found is None or found.role not in _REPLACED:
            return found
        # `modules_to_save`, `bias="all"`: whole tensors that take the place of the model's.
        module = found.module.removesuffix(".base_layer")
        return found._replace(module=module, role=_REPLACED[found.role])

    def writer_of(self, facts: Facts) -> str:
        return "peft"

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        ending = PEFT_SPELLING.get(role)
        if ending is None:
            raise DialectError(f"peft: has no name for the tensor '{role}' of {target.module}; try kohya.")
        return f"{PEFT_PREFIX}{target.module}.{ending}"

"""XLabs (Flux): LoRA in attention processors of BFL's blocks, `double_blocks.0.processor.qkv_lora1.down.weight`.

In double blocks `1` is the image's stream and `2` the text's; in single blocks `qkv` is the first part of `linear1` and
`proj` is `linear2`. No alpha: the scale is 1. Source: XLabs' x-flux `src/flux/modules/layers.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import ClassVar

from diffadapt.adapter import TargetKey
from diffadapt.dialects.base import Facts, Key, Recognition, Slot, evidence
from diffadapt.dialects.dotted import Dotted
from diffadapt.errors import DialectError
from diffadapt.families.base import Family

_KEY = re.compile(
    r"(?:diffusion_model\.|transformer\.)?(?P<block>(?:double|single)_blocks\.\d{1,4})\.processor\."
    r"(?P<projection>qkv|proj)_lora(?P<stream>[12]?)\.(?P<role>down\.weight|up\.weight|alpha)"
)
_MODULES = {
    "qkv1": "img_attn.qkv", "proj1": "img_attn.proj", "qkv2": "txt_attn.qkv", "proj2": "txt_attn.proj",
    "qkv": "linear1_qkv", "proj": "linear2",
}  # fmt: skip
_ROLES = {"down.weight": "lora_down", "up.weight": "lora_up", "alpha": "alpha"}


class XLabs(Dotted):
    """The stream's number and the projection's name make the module."""

    name = "xlabs"
    prefixes: ClassVar[Mapping[str, Slot | None]] = {}
    writer: ClassVar[str] = "diffusers"

    def recognise(self, keys: Collection[str]) -> Recognition | None:
        return evidence(keys, lambda key: _KEY.fullmatch(key) is not None, "are processors of double or single blocks")

    def split(self, key: str) -> Key | None:
        found = _KEY.fullmatch(key)
        if found is None:
            return None
        module = _MODULES[found["projection"] + found["stream"]]
        return Key("denoiser", f"{found['block']}.{module}", _ROLES[found["role"]], False)

    def writer_of(self, facts: Facts) -> str:
        return self.writer

    def join(self, target: TargetKey, role: str, family: Family | None) -> str:
        raise DialectError("xlabs: holds q, k and v as one module of low rank; write diffusers or kohya instead.")

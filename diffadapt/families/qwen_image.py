"""Qwen-Image, Edit, Edit-Plus (2509, 2511), Layered: one transformer, Qwen2.5-VL. The original names are Diffusers'.

Layered adds one embedding; the other variants have the same modules, so that adapters do not say which they are for.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names
from diffadapt.families.qwen import QWEN25_VL_7B

QWEN_IMAGE = Family(
    "qwen_image",
    {
        "transformer": Names(
            model=Model("qwen_image", "diffusers.QwenImageTransformer2DModel", {"use_additional_t_cond": True})
        ),
        "text_encoder": QWEN25_VL_7B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "qwen25_7b": "text_encoder",
    },
    base_models=("qwen-image", "qwen_image", "@@qwen-image", "qwen/qwen-image"),
)  # fmt: skip

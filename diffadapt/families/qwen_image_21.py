"""Qwen-Image 2.1: single-stream, Qwen3-VL-8B. The original names are Diffusers'; ComfyUI fuses the gate."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, under
from diffadapt.families.qwen import QWEN3_VL_8B

_MLP = "transformer_blocks.{i}.img_mlp"

QWEN_IMAGE_21 = Family(
    "qwen_image_21",
    {
        "transformer": Names(
            native=(Rule(f"{_MLP}.gate_up", under(_MLP, ("gate_layer", "proj"))),),
            model=Model("qwen_image_21", "diffusers.QwenImage21Transformer2DModel"),
        ),
        "text_encoder": QWEN3_VL_8B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "qwen3vl_8b": "text_encoder",
    },
    base_models=("qwen-image-2.1", "qwen_image_2", "qwen-image-21", "qwen/qwen-image-2.1"),
)  # fmt: skip

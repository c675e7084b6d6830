"""Kolors: SDXL's UNet with a wider added embedding, and ChatGLM3-6B."""

from __future__ import annotations

from diffadapt.families.base import Family, Width
from diffadapt.families.glm import CHATGLM3_6B
from diffadapt.families.sdxl import ATTENTION
from diffadapt.families.unet import CONTROLNET, UNET_3_LEVELS

KOLORS = Family(
    "kolors",
    {"unet": UNET_3_LEVELS, "controlnet": CONTROLNET, "text_encoder": CHATGLM3_6B},
    {"denoiser": "unet", "unet": "unet", "controlnet": "controlnet", "text_encoder": "text_encoder"},
    widths=(
        Width("unet", ("attn2.to_k", "attn2.to_v"), 2048),
        Width("unet", ("add_embedding.linear_1",), 5632),
        Width("controlnet", ("attn2.to_k", "attn2.to_v"), 2048),
    ),
    attention=ATTENTION,
    base_models=("kolors",),
    native=True,
    rare=True,
)

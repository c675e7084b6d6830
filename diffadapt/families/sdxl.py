"""Stable Diffusion XL base, its inpainting model and its ControlNets."""

from __future__ import annotations

from diffadapt.families.base import Family, Width
from diffadapt.families.clip import CLIP, WIDTH_LEAVES
from diffadapt.families.unet import CONTROLNET, UNET_3_LEVELS

ATTENTION = {"down_blocks.1": 2, "down_blocks.2": 10, "mid_block": 10, "up_blocks.0": 10, "up_blocks.1": 2}

SDXL = Family(
    "sdxl",
    {"unet": UNET_3_LEVELS, "text_encoder": CLIP, "text_encoder_2": CLIP, "controlnet": CONTROLNET},
    {
        "denoiser": "unet", "unet": "unet", "controlnet": "controlnet",
        "text_encoder": "text_encoder", "clip_l": "text_encoder",
        "text_encoder_2": "text_encoder_2", "clip_g": "text_encoder_2",
    },
    widths=(
        Width("unet", ("attn2.to_k", "attn2.to_v"), 2048),
        Width("unet", ("add_embedding.linear_1",), 2816),
        Width("controlnet", ("attn2.to_k", "attn2.to_v"), 2048),
        Width("text_encoder", WIDTH_LEAVES, 768),
        Width("text_encoder_2", WIDTH_LEAVES, 1280),
    ),
    attention=ATTENTION,
    base_models=("sdxl", "stable-diffusion-xl-v1-base", "stable-diffusion-xl-1", "ssd", "vega"),
    native=True,
)  # fmt: skip

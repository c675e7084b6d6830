"""The SDXL refiner: a UNet of four levels, and CLIP-bigG alone, which its pipeline calls `text_encoder_2`."""

from __future__ import annotations

from diffadapt.families.base import Family, Width
from diffadapt.families.clip import CLIP, WIDTH_LEAVES
from diffadapt.families.unet import UNET_4_LEVELS

SDXL_REFINER = Family(
    "sdxl_refiner",
    {"unet": UNET_4_LEVELS, "text_encoder_2": CLIP},
    {
        "denoiser": "unet", "unet": "unet",
        "text_encoder": "text_encoder_2", "text_encoder_2": "text_encoder_2", "clip_g": "text_encoder_2",
    },
    widths=(
        Width("unet", ("attn2.to_k", "attn2.to_v"), 1280),
        Width("unet", ("add_embedding.linear_1",), 2560),
        Width("text_encoder_2", WIDTH_LEAVES, 1280),
    ),
    attention={"down_blocks.1": 4, "down_blocks.2": 4, "mid_block": 4, "up_blocks.1": 4, "up_blocks.2": 4},
    base_models=("stable-diffusion-xl-v1-refiner",),
    native=True,
    rare=True,
)  # fmt: skip

"""Stable Diffusion 2.x: the UNet of 1.x with wider context, and OpenCLIP-H as text encoder."""

from __future__ import annotations

from diffadapt.families.base import Family, Width
from diffadapt.families.clip import WIDTH_LEAVES
from diffadapt.families.sd1 import ATTENTION, COMPONENTS, SLOTS

SD2 = Family(
    "sd2",
    COMPONENTS,
    {**SLOTS, "clip_h": "text_encoder"},
    widths=(
        Width("unet", ("attn2.to_k", "attn2.to_v"), 1024),
        Width("controlnet", ("attn2.to_k", "attn2.to_v"), 1024),
        Width("text_encoder", WIDTH_LEAVES, 1024),
    ),
    attention=ATTENTION,
    base_models=("sd_v2", "sd_2", "sd2", "stable-diffusion-v2"),
)

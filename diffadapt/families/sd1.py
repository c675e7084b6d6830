"""Stable Diffusion 1.x, its inpainting model and its ControlNets."""

from __future__ import annotations

from diffadapt.families.base import Family, Width
from diffadapt.families.clip import CLIP, WIDTH_LEAVES
from diffadapt.families.unet import CONTROLNET, UNET_4_LEVELS

COMPONENTS = {"unet": UNET_4_LEVELS, "text_encoder": CLIP, "controlnet": CONTROLNET}
SLOTS = {"denoiser": "unet", "unet": "unet", "text_encoder": "text_encoder", "controlnet": "controlnet"}
ATTENTION = {
    **{f"down_blocks.{i}": 1 for i in (0, 1, 2)}, "mid_block": 1, **{f"up_blocks.{i}": 1 for i in (1, 2, 3)},
}  # fmt: skip

SD1 = Family(
    "sd1",
    COMPONENTS,
    {**SLOTS, "clip_l": "text_encoder"},
    widths=(
        Width("unet", ("attn2.to_k", "attn2.to_v"), 768),
        Width("controlnet", ("attn2.to_k", "attn2.to_v"), 768),
        Width("text_encoder", WIDTH_LEAVES, 768),
    ),
    attention=ATTENTION,
    base_models=("sd_v1", "sd_1", "sd1", "stable-diffusion-v1"),
)

"""Kandinsky 2.2: a UNet whose attention has no transformer around it, and a prior of its own.

Diffusers' training scripts adapt either, and save the attention alone under Diffusers' names.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names

_UNET = {
    "act_fn": "silu", "addition_embed_type": "image", "attention_head_dim": 64, "cross_attention_dim": 768,
    "block_out_channels": (384, 768, 1152, 1536), "layers_per_block": 3, "out_channels": 8,
    "down_block_types": ("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": (*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
    "encoder_hid_dim": 1280, "encoder_hid_dim_type": "image_proj", "resnet_time_scale_shift": "scale_shift",
}  # fmt: skip

KANDINSKY22 = Family(
    "kandinsky22",
    {
        "unet": Names(model=Model("kandinsky22", "diffusers.UNet2DConditionModel", _UNET)),
        "prior": Names(model=Model("kandinsky22_prior", "diffusers.PriorTransformer", {"embedding_dim": 1280})),
    },
    {"denoiser": "unet", "unet": "unet", "prior": "prior"},
    base_models=("kandinsky-2-2", "kandinsky_2_2", "kandinsky-2.2", "kandinsky22"),
    rare=True,
)

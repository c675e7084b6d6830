"""DreamLite base and mobile: a UNet with grouped attention, blocks without self-attention and separable convolutions.

Its trainer is PEFT's, on the attention. Of the published configuration, whether `proj_in` is a Linear is not known.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names
from diffadapt.families.qwen import QWEN3_VL_2B

_CONFIG = {
    "block_out_channels": (256, 512, 896), "attention_head_dim": (4, 8, 14), "transformer_layers_per_block": (1, 2, 4),
    "cross_attention_dim": 2304, "encoder_hid_dim": 2048, "encoder_hid_dim_type": "text_proj_rms",
    "addition_embed_type": "time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 512,
    "ff_mult": 3,
}  # fmt: skip

DREAMLITE = Family(
    "dreamlite",
    {"unet": Names(model=Model("dreamlite", "diffusers.DreamLiteUNetModel", _CONFIG)), "text_encoder": QWEN3_VL_2B},
    {"denoiser": "unet", "unet": "unet", "text_encoder": "text_encoder"},
    base_models=("dreamlite",),
    rare=True,
)

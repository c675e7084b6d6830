"""HiDream-I1 and E1: mixture of experts, four text encoders. The original names are Diffusers'."""

from __future__ import annotations

from diffadapt.families.base import Family, Width
from diffadapt.families.clip import CLIP, WIDTH_LEAVES
from diffadapt.families.llama import LLAMA31_8B
from diffadapt.families.model import Model
from diffadapt.families.names import Names
from diffadapt.families.t5 import T5_XXL

_CONFIG = {
    "patch_size": 2, "in_channels": 16, "caption_channels": (4096, 4096), "axes_dims_rope": (64, 32, 32),
    # Which of Llama's hidden states the blocks take: 16 + 32 of them, and one more projection for T5.
    "llama_layers": (*range(32), *(31,) * 16),
}  # fmt: skip

HIDREAM = Family(
    "hidream",
    {
        "transformer": Names(model=Model("hidream", "diffusers.HiDreamImageTransformer2DModel", _CONFIG)),
        "text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": T5_XXL, "text_encoder_4": LLAMA31_8B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "clip_l": "text_encoder",
        "text_encoder_2": "text_encoder_2", "clip_g": "text_encoder_2",
        "text_encoder_3": "text_encoder_3", "t5xxl": "text_encoder_3",
        "text_encoder_4": "text_encoder_4", "llama": "text_encoder_4",
    },
    widths=(Width("text_encoder", WIDTH_LEAVES, 768), Width("text_encoder_2", WIDTH_LEAVES, 1280)),
    base_models=("hidream-i1", "hidream_i1", "hidream-e1", "hidream_e1", "hidream", "hidream-ai/hidream"),
)  # fmt: skip

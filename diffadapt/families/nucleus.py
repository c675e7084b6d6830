"""NucleusMoE-Image: Qwen3-VL-8B. The original names are Diffusers'; the experts are two parameters a block."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names
from diffadapt.families.qwen import QWEN3_VL_8B

_CONFIG = {"num_layers": 32, "num_key_value_heads": 4, "joint_attention_dim": 4096, "num_experts": 64}

NUCLEUS = Family(
    "nucleus",
    {
        "transformer": Names(model=Model("nucleus", "diffusers.NucleusMoEImageTransformer2DModel", _CONFIG)),
        "text_encoder": QWEN3_VL_8B,
    },
    {"denoiser": "transformer", "transformer": "transformer", "text_encoder": "text_encoder"},
    base_models=("nucleus",),
    rare=True,
)

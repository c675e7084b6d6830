"""ERNIE-Image: Ministral-3B. The original names are Diffusers'."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.mistral import MINISTRAL3_3B
from diffadapt.families.model import Model
from diffadapt.families.names import Names

_CONFIG = {
    "hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12288, "text_in_dim": 3072,
}  # fmt: skip

ERNIE = Family(
    "ernie",
    {
        "transformer": Names(model=Model("ernie", "diffusers.ErnieImageTransformer2DModel", _CONFIG)),
        "text_encoder": MINISTRAL3_3B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "ministral3_3b": "text_encoder",
    },
    base_models=("ernie",),
)  # fmt: skip

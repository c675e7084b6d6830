"""T5 and UMT5 text encoders, whose one naming is Hugging Face's."""

from __future__ import annotations

from diffadapt.families.model import Model
from diffadapt.families.names import Names

_XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "vocab_size": 32128,
    "feed_forward_proj": "gated-gelu", "is_gated_act": True,
}  # fmt: skip

T5_XXL = Names(model=Model("t5_xxl", "transformers.T5EncoderModel", _XXL))
UMT5_XXL = Names(model=Model("umt5_xxl", "transformers.UMT5EncoderModel", {**_XXL, "vocab_size": 256384}))

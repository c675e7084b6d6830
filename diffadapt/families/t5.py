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

# Pile-T5-XL of AuraFlow, mT5-XL of HunyuanDiT.
_XL = {**_XXL, "d_model": 2048, "d_ff": 5120, "num_heads": 32}

PILE_T5_XL = Names(model=Model("pile_t5_xl", "transformers.UMT5EncoderModel", _XL))
MT5_XL = Names(model=Model("mt5_xl", "transformers.T5EncoderModel", {**_XL, "vocab_size": 250112}))

# T5-11B of Cosmos.
_11B = {"d_model": 1024, "d_kv": 128, "d_ff": 65536, "num_layers": 24, "num_heads": 128, "vocab_size": 32128}

T5_11B = Names(model=Model("t5_11b", "transformers.T5EncoderModel", _11B))

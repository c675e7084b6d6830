"""Gemma text encoders: Gemma2-2B of Lumina 2 and Sana, Gemma3-12B of LTX-2."""

from __future__ import annotations

from diffadapt.families.decoders import decoder
from diffadapt.families.model import Model

GEMMA2_2B = decoder(Model("gemma2_2b", "transformers.Gemma2Model"))
GEMMA3_12B = decoder(
    Model(
        "gemma3_12b",
        "transformers.Gemma3ForConditionalGeneration",
        {
            "text_config": {
                "hidden_size": 3840, "intermediate_size": 15360, "num_hidden_layers": 48,
                "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208,
            },
            "vision_config": {
                "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
                "image_size": 896, "patch_size": 14, "vision_use_head": False,
            },
        },
    )
)  # fmt: skip

"""Mistral text encoders: Mistral-Small-24B of Flux.2 dev, Ministral-3B of ERNIE-Image."""

from __future__ import annotations

from diffadapt.families.decoders import decoder
from diffadapt.families.model import Model

MISTRAL3_24B = decoder(Model("mistral3_24b", "transformers.Mistral3ForConditionalGeneration"))
MINISTRAL3_3B = decoder(
    Model(
        "ministral3_3b",
        "transformers.Mistral3Model",
        {
            "text_config": {
                "model_type": "ministral3", "hidden_size": 3072, "intermediate_size": 9216, "num_hidden_layers": 26,
                "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 131072,
            },
        },
    )
)  # fmt: skip

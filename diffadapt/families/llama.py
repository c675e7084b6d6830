"""Llama text encoders: Llama-3.1-8B of HiDream, Llama-3-8B of HunyuanVideo (the text part of a Llava)."""

from __future__ import annotations

from diffadapt.families.decoders import decoder
from diffadapt.families.model import Model

_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8,
}  # fmt: skip

LLAMA31_8B = decoder(Model("llama31_8b", "transformers.LlamaForCausalLM", {**_8B, "vocab_size": 128256}))
LLAMA3_8B = decoder(Model("llama3_8b", "transformers.LlamaModel", {**_8B, "vocab_size": 128320}))

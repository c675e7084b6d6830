"""SmolLM3-3B, the text encoder of Bria's FIBO."""

from __future__ import annotations

from diffadapt.families.decoders import decoder
from diffadapt.families.model import Model

SMOLLM3_3B = decoder(Model("smollm3_3b", "transformers.SmolLM3ForCausalLM"))

"""GLM text encoders: GLM-4-9B of CogView4 (its gate and up projection are one Linear here too)."""

from __future__ import annotations

from diffadapt.families.decoders import decoder
from diffadapt.families.model import Model

GLM4_9B = decoder(Model("glm4_9b", "transformers.GlmModel"))

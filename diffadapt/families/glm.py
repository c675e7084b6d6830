"""GLM text encoders: GLM-4-9B of CogView4 (its gate and up projection are one Linear here too), ChatGLM3-6B of Kolors
(its attention's projections are one as well)."""

from __future__ import annotations

from diffadapt.families.decoders import decoder
from diffadapt.families.model import Model
from diffadapt.families.names import Names

GLM4_9B = decoder(Model("glm4_9b", "transformers.GlmModel"))
CHATGLM3_6B = Names(
    model=Model(
        "chatglm3_6b",
        "diffusers.pipelines.kolors.text_encoder.ChatGLMModel",
        {"multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True, "original_rope": True},
    ),
    levels=("transformer.", ""),
)

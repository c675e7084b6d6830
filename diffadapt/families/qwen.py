"""Qwen text encoders: Qwen3 of Anima, Ovis-Image, Z-Image and Flux.2 klein, Qwen2.5-VL of Qwen-Image and the Hunyuan
models, Qwen3-VL of Krea 2, Ideogram 4, Flux.3 and others.

One size is one layout: pipelines that hold the bare model and those that hold it with a language head are the same to
placement.
"""

from __future__ import annotations

from diffadapt.families.decoders import decoder
from diffadapt.families.model import Model
from diffadapt.families.names import Names


def _qwen3(layout: str, cls: str, width: int, mlp: int, depth: int, heads: int) -> Names:
    text = _text(width, mlp, depth, heads)
    return decoder(Model(layout, f"transformers.{cls}", text))


def _qwen3_vl(layout: str, text: tuple[int, int, int, int], vision: tuple[int, int, int], *deep: int) -> Names:
    width, mlp, depth = vision
    eyes = {
        "hidden_size": width, "intermediate_size": mlp, "depth": depth, "num_heads": 16, "out_hidden_size": text[0],
        "deepstack_visual_indexes": list(deep),
    }  # fmt: skip
    config = {"text_config": _text(*text), "vision_config": eyes}
    return decoder(Model(layout, "transformers.Qwen3VLForConditionalGeneration", config))


def _text(width: int, mlp: int, depth: int, heads: int) -> dict[str, int]:
    return {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": depth, "num_attention_heads": heads,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    }  # fmt: skip


QWEN3_0_6B = _qwen3("qwen3_0_6b", "Qwen3Model", 1024, 3072, 28, 16)
QWEN3_1_7B = _qwen3("qwen3_1_7b", "Qwen3Model", 2048, 6144, 28, 16)
QWEN3_4B = _qwen3("qwen3_4b", "Qwen3ForCausalLM", 2560, 9728, 36, 32)
QWEN3_8B = _qwen3("qwen3_8b", "Qwen3ForCausalLM", 4096, 12288, 36, 32)

QWEN3_VL_2B = _qwen3_vl("qwen3_vl_2b", (2048, 6144, 28, 16), (1024, 4096, 24), 5, 11, 17)
QWEN3_VL_4B = _qwen3_vl("qwen3_vl_4b", (2560, 9728, 36, 32), (1024, 4096, 24), 5, 11, 17)
QWEN3_VL_8B = _qwen3_vl("qwen3_vl_8b", (4096, 12288, 36, 32), (1152, 4304, 27), 8, 16, 24)

QWEN25_VL_7B = decoder(
    Model(
        "qwen25_vl_7b",
        "transformers.Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {
                "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
                "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
            },
            "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "depth": 32, "out_hidden_size": 3584},
        },
    )
)  # fmt: skip

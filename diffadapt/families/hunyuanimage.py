"""HunyuanImage 2.1, with its distilled kind, and the refiner behind it; Qwen2.5-VL, with ByT5 for glyphs.

Original names: Tencent's checkpoint, which sd-scripts uses; the released runtime takes the fused layers apart when it
loads them, ComfyUI spells some as Flux does. Source: Diffusers' conversion script.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.hunyuanvideo import (
    COMFY_DOUBLE,
    COMFY_SINGLE,
    COMFY_TEXT,
    DOUBLE,
    ENDS,
    FUSED,
    SINGLE,
    SPLIT,
    TEXT,
    embedders,
)
from diffadapt.families.hunyuanvideo15 import GLYPHS
from diffadapt.families.model import Model
from diffadapt.families.names import Names, between
from diffadapt.families.qwen import QWEN25_VL_7B

_RUNTIME = (
    *SPLIT,
    *between("single_blocks.{i}", "single_transformer_blocks.{i}", {
        "linear1_q": "attn.to_q", "linear1_k": "attn.to_k", "linear1_v": "attn.to_v", "linear1_mlp": "proj_mlp",
        "linear2.fc": "proj_out",
    }),
)  # fmt: skip
_TIMES = {"time_in": "time_guidance_embed.timestep_embedder", "guidance_in": "time_guidance_embed.guidance_embedder"}
_MEAN_FLOW = {"time_r_in": "time_guidance_embed.timestep_embedder_r"}
_SPELLINGS = (*_RUNTIME, *COMFY_DOUBLE, *COMFY_SINGLE, *COMFY_TEXT, *embedders(_TIMES, "in_layer", "out_layer"))
_NATIVE = (*FUSED, *DOUBLE, *SINGLE, *TEXT, *ENDS, *embedders(_TIMES))
_CLASS = "diffusers.HunyuanImageTransformer2DModel"
_SLOTS = {
    "denoiser": "transformer", "transformer": "transformer",
    "text_encoder": "text_encoder", "qwen25_7b": "text_encoder",
}  # fmt: skip

# The times of guidance and of the step before are the distilled model's.
HUNYUAN_IMAGE_21 = Family(
    "hunyuan_image_21",
    {
        "transformer": Names(
            (*_SPELLINGS, *embedders(_MEAN_FLOW, "in_layer", "out_layer")),
            (*_NATIVE, *GLYPHS, *embedders(_MEAN_FLOW)),
            Model(
                "hunyuan_image_21", _CLASS, {"text_embed_2_dim": 1472, "guidance_embeds": True, "use_meanflow": True}
            ),
        ),
        "text_encoder": QWEN25_VL_7B,
    },
    _SLOTS,
    base_models=("hunyuan-image-2.1", "hunyuan_image", "hunyuan-image", "hunyuanimage", "tencent/hunyuanimage"),
    native=True,
)
HUNYUAN_IMAGE_REFINER = Family(
    "hunyuan_image_refiner",
    {
        "transformer": Names(
            _SPELLINGS,
            _NATIVE,
            Model(
                "hunyuan_image_refiner", _CLASS,
                {
                    "in_channels": 128, "num_attention_heads": 26, "patch_size": (1, 1, 1),
                    "rope_axes_dim": (16, 56, 56), "guidance_embeds": True,
                },
            ),
        ),
        "text_encoder": QWEN25_VL_7B,
    },
    _SLOTS,
    base_models=("hunyuan-image-refiner", "hunyuan_image_refiner", "hunyuanimage-refiner"),
    native=True,
    rare=True,
)  # fmt: skip

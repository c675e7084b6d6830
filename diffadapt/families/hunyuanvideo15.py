"""HunyuanVideo 1.5: double blocks only; Qwen2.5-VL, with ByT5 for glyphs.

The original has query, key and value apart; ComfyUI's file has them in one. The time of the step before
(`time_r_in`) is the step-distilled model's.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.hunyuanvideo import COMFY_DOUBLE, COMFY_TEXT, DOUBLE, ENDS, FUSED, SPLIT, TEXT, embedders
from diffadapt.families.model import Model
from diffadapt.families.names import Names, between
from diffadapt.families.qwen import QWEN25_VL_7B

GLYPHS = between("byt5_in", "context_embedder_2", {
    "layernorm": "norm", "fc1": "linear_1", "fc2": "linear_2", "fc3": "linear_3",
})  # fmt: skip
_TIMES = {"time_in": "time_embed.timestep_embedder", "time_r_in": "time_embed.timestep_embedder_r"}

HUNYUAN_VIDEO_15 = Family(
    "hunyuan_video_15",
    {
        "transformer": Names(
            (*FUSED, *COMFY_DOUBLE, *COMFY_TEXT, *embedders(_TIMES, "in_layer", "out_layer")),
            (
                *SPLIT, *DOUBLE, *TEXT, *ENDS, *GLYPHS, *embedders(_TIMES),
                *between("vision_in.proj", "image_embedder", {
                    "0": "norm_in", "1": "linear_1", "3": "linear_2", "4": "norm_out",
                }),
                *between("", "", {"cond_type_embedding": "cond_type_embed"}),
            ),
            Model("hunyuan_video_15", "diffusers.HunyuanVideo15Transformer3DModel", {"use_meanflow": True}),
        ),
        "text_encoder": QWEN25_VL_7B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "qwen25_7b": "text_encoder",
    },
    base_models=("hunyuan_video_1_5", "hunyuan-video-1.5", "hunyuanvideo-1.5", "tencent/hunyuanvideo-1.5"),
    native=True,
)  # fmt: skip

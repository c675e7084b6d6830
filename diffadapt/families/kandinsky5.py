"""Kandinsky 5: image lite, video lite and video pro; Qwen2.5-VL and CLIP-L. Every tool uses Diffusers' names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffadapt.families.base import Family
from diffadapt.families.clip import CLIP
from diffadapt.families.model import Model
from diffadapt.families.names import Names
from diffadapt.families.qwen import QWEN25_VL_7B

ENCODERS = {"text_encoder": QWEN25_VL_7B, "text_encoder_2": CLIP}
SLOTS = {
    "denoiser": "transformer", "transformer": "transformer",
    "text_encoder": "text_encoder", "qwen25_7b": "text_encoder",
    "text_encoder_2": "text_encoder_2", "clip_l": "text_encoder_2",
}  # fmt: skip


def _family(name: str, config: Mapping[str, Any], *base_models: str) -> Family:
    model = Model(name, "diffusers.Kandinsky5Transformer3DModel", {"in_visual_dim": 16, "out_visual_dim": 16, **config})
    names = ("kandinsky5", "kandinsky-5", *base_models)
    return Family(name, {"transformer": Names(model=model), **ENCODERS}, SLOTS, base_models=names)


KANDINSKY5_IMAGE_LITE = _family(
    "kandinsky5_image_lite",
    {"model_dim": 2560, "ff_dim": 10240, "num_visual_blocks": 50, "axes_dims": (32, 48, 48)},
    "kandinskylab/kandinsky-5.0-t2i", "kandinskylab/kandinsky-5.0-i2i",
)  # fmt: skip
KANDINSKY5_VIDEO_LITE = _family(
    "kandinsky5_video_lite",
    {"model_dim": 1792, "ff_dim": 7168, "visual_cond": True},
    "kandinskylab/kandinsky-5.0-t2v-lite", "kandinskylab/kandinsky-5.0-i2v-lite",
)  # fmt: skip
KANDINSKY5_VIDEO_PRO = _family(
    "kandinsky5_video_pro",
    {
        "time_dim": 1024, "model_dim": 4096, "ff_dim": 16384, "num_text_blocks": 4, "num_visual_blocks": 60,
        "visual_cond": True,
    },
    "kandinskylab/kandinsky-5.0-t2v-pro", "kandinskylab/kandinsky-5.0-i2v-pro",
)  # fmt: skip

"""FramePack: HunyuanVideo with the frames before at three scales and the first one as SigLIP sees it.

It is known in Diffusers' names only; the original names of HunyuanVideo are there because its adapters fit.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.clip import CLIP
from diffadapt.families.hunyuanvideo import NATIVE, SLOTS, SPELLINGS
from diffadapt.families.llama import LLAMA3_8B
from diffadapt.families.model import Model
from diffadapt.families.names import Names

FRAMEPACK = Family(
    "framepack",
    {
        "transformer": Names(
            (*SPELLINGS, *NATIVE),
            model=Model(
                "framepack",
                "diffusers.HunyuanVideoFramepackTransformer3DModel",
                {"has_image_proj": True, "has_clean_x_embedder": True},
            ),
        ),
        "text_encoder": LLAMA3_8B,
        "text_encoder_2": CLIP,
    },
    SLOTS,
    base_models=("framepack", "lllyasviel/framepack"),
)

"""LongCat-Image and its edit model: Flux.1's blocks in 10 + 20, Qwen2.5-VL for text.

Original names: Flux', as ComfyUI has them, which loads the model with its Flux class; no vector and no guidance.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.flux1 import BLOCKS
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.qwen import QWEN25_VL_7B

NATIVE = (
    *BLOCKS,
    *between("", "", {
        "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
        "time_in.in_layer": "time_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_embed.timestep_embedder.linear_2",
    }),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip

LONGCAT_IMAGE = Family(
    "longcat_image",
    {
        "transformer": Names(
            native=NATIVE,
            model=Model(
                "longcat_image", "diffusers.LongCatImageTransformer2DModel", {"num_layers": 10, "num_single_layers": 20}
            ),
        ),
        "text_encoder": QWEN25_VL_7B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "qwen25_7b": "text_encoder",
    },
    base_models=("longcat",),
    native=True,
)  # fmt: skip

"""Chroma1: Flux.1's blocks without modulation, fed by one distilled guidance network; T5-XXL alone.

Original names: Flux'. Source: Diffusers' checkpoint converter. A file with no module of the guidance network cannot be
told from one for Flux.1 that leaves the modulation alone, which is why Flux.1 stays a candidate.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.flux1 import FEED_FORWARD, JOINT, PARTS, SINGLE
from diffadapt.families.model import Model
from diffadapt.families.names import Names, between
from diffadapt.families.t5 import T5_XXL

NATIVE = (
    *JOINT, *FEED_FORWARD, *SINGLE, *PARTS,
    *between("", "", {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}),
    *between("distilled_guidance_layer.layers.{i}", "distilled_guidance_layer.layers.{i}", {
        "in_layer": "linear_1", "out_layer": "linear_2",
    }),
)  # fmt: skip

CHROMA = Family(
    "chroma",
    {
        "transformer": Names(native=NATIVE, model=Model("chroma", "diffusers.ChromaTransformer2DModel")),
        "text_encoder": T5_XXL,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        # sd-scripts keeps the number that T5 has in Flux.1.
        "text_encoder": "text_encoder", "text_encoder_3": "text_encoder", "t5xxl": "text_encoder",
    },
    base_models=("chroma",),
    native=True,
)  # fmt: skip

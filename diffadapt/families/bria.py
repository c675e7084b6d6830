"""Bria 3.2: Flux-like blocks, T5-XXL for text; Diffusers' names only.

The configuration of the published weights is not known here: the layout is that of the class's defaults, larger than
the 4 billion parameters its makers state, so shapes of real files may disagree with it. Names alone decide then.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names
from diffadapt.families.t5 import T5_XXL

BRIA = Family(
    "bria",
    {"transformer": Names(model=Model("bria", "diffusers.BriaTransformer2DModel")), "text_encoder": T5_XXL},
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "t5xxl": "text_encoder",
    },
    base_models=("bria-3", "bria_3", "bria3"),
    rare=True,
)  # fmt: skip

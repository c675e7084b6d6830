"""GLM-Image: CogView4's blocks, 30 of them, and embedders of its own. No other names than Diffusers' are known."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.cogview4 import SIZE
from diffadapt.families.model import Model
from diffadapt.families.names import Names

GLM_IMAGE = Family(
    "glm_image",
    {"transformer": Names(model=Model("glm_image", "diffusers.GlmImageTransformer2DModel", SIZE))},
    {"denoiser": "transformer", "transformer": "transformer"},
    base_models=("glm-image", "glm_image"),
    rare=True,
)

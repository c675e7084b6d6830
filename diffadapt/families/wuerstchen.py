"""Wuerstchen 2: its prior and the prior's text encoder. Trainers write Diffusers' names (OneTrainer)."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.clip import CLIP
from diffadapt.families.model import Model
from diffadapt.families.names import Names

_CLS = "diffusers.pipelines.deprecated.wuerstchen.WuerstchenPrior"
_PRIOR = {"c": 1536, "c_cond": 1280, "depth": 32, "nhead": 24}

WUERSTCHEN2 = Family(
    "wuerstchen2",
    {"prior": Names(model=Model("wuerstchen2_prior", _CLS, _PRIOR)), "text_encoder": CLIP},
    {
        "denoiser": "prior", "prior": "prior",
        "text_encoder": "text_encoder", "prior_text_encoder": "text_encoder",
    },
    base_models=("wuerstchen", "warp-ai/wuerstchen"),
)  # fmt: skip

"""Bria FIBO (and FIBO-Edit): Flux-like blocks, each fed by a layer of SmolLM3; and FIBO 2: one stream, Qwen3-VL-4B.

Diffusers' names only.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names
from diffadapt.families.qwen import QWEN3_VL_4B
from diffadapt.families.smollm import SMOLLM3_3B

_FIBO = {"num_layers": 8, "num_single_layers": 38, "in_channels": 48}
_SLOTS = {"denoiser": "transformer", "transformer": "transformer", "text_encoder": "text_encoder"}

BRIA_FIBO2 = Family(
    "bria_fibo2",
    {
        "transformer": Names(model=Model("bria_fibo2", "diffusers.BriaFibo2Transformer2DModel")),
        "text_encoder": QWEN3_VL_4B,
    },
    _SLOTS,
    base_models=("fibo-2", "fibo_2", "fibo2", "bria-fibo-2", "bria_fibo2", "bria_fibo_2"),
)
BRIA_FIBO = Family(
    "bria_fibo",
    {
        "transformer": Names(model=Model("bria_fibo", "diffusers.BriaFiboTransformer2DModel", _FIBO)),
        "text_encoder": SMOLLM3_3B,
    },
    _SLOTS,
    base_models=("fibo", "bria-fibo", "bria_fibo"),
    rare=True,
)

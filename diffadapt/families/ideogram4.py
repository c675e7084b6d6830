"""Ideogram 4: Qwen3-VL-8B, and two transformers of which adapters are for the conditional one.

Source: Diffusers' LoRA converter, musubi-tuner's `networks/lora_ideogram4.py`.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, under
from diffadapt.families.qwen import QWEN3_VL_8B

_ATTENTION = "layers.{i}.attention"

IDEOGRAM4 = Family(
    "ideogram4",
    {
        "transformer": Names(
            native=(
                Rule(f"{_ATTENTION}.qkv", under(_ATTENTION, ("to_q", "to_k", "to_v"))),
                Rule(f"{_ATTENTION}.o", (f"{_ATTENTION}.to_out.0",)),
            ),
            model=Model("ideogram4", "diffusers.Ideogram4Transformer2DModel"),
        ),
        "text_encoder": QWEN3_VL_8B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "qwen3vl_8b": "text_encoder",
    },
    base_models=("ideogram",),
    native=True,
)  # fmt: skip

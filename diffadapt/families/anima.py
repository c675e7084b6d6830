"""Anima: Cosmos-Predict2's 2B transformer, Qwen3-0.6B, and a text conditioner that trainers keep inside the denoiser.

Sources: Diffusers' checkpoint and LoRA converters, sd-scripts `networks/lora_anima.py`.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.cosmos import CLASS, NATIVE, PREDICT2_2B
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.qwen import QWEN3_0_6B

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
_BLOCK = (
    *(f"{attention}.{leaf}" for attention in ("self_attn", "cross_attn") for leaf in _ATTENTION),
    "mlp.0", "mlp.2", "norm_self_attn", "norm_cross_attn", "norm_mlp",
)  # fmt: skip
LLM_ADAPTER: tuple[Rule, ...] = (
    *between("llm_adapter.blocks.{i}", "blocks.{i}", {leaf: leaf for leaf in _BLOCK}),
    *between("llm_adapter", "", {leaf: leaf for leaf in ("embed", "norm", "out_proj")}),
)
"""The conditioner's modules as part of the original transformer."""

ANIMA = Family(
    "anima",
    {
        "transformer": Names(native=NATIVE, model=Model("cosmos2_2b", CLASS, PREDICT2_2B)),
        "text_conditioner": Names(
            native=LLM_ADAPTER, model=Model("anima_conditioner", "diffusers.AnimaTextConditioner")
        ),
        "text_encoder": QWEN3_0_6B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer", "text_conditioner": "text_conditioner",
        "text_encoder": "text_encoder", "qwen3_06b": "text_encoder",
    },
    inside={"text_conditioner": Names(native=LLM_ADAPTER)},
    base_models=("anima", "circlestone-labs/anima"),
    native=True,
)  # fmt: skip

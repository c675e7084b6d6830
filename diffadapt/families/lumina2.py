"""Lumina Image 2.0 and Gemma2-2B. Its fused projections are grouped: 2304 rows of queries, 768 of keys, 768 of values.

Sources of the original names: Diffusers' checkpoint converter, sd-scripts `networks/lora_lumina.py`.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.gemma import GEMMA2_2B
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under


def _block(name: str, modulated: bool) -> tuple[Rule, ...]:
    # The norm in front of the attention is part of the modulation, where there is one.
    first = {"adaLN_modulation.1": "norm1.linear", "attention_norm1": "norm1.norm"} if modulated else {}
    return (
        Rule(f"{name}.{{i}}.attention.qkv", under(f"{name}.{{i}}.attn", ("to_q", "to_k", "to_v"))),
        *between(f"{name}.{{i}}", f"{name}.{{i}}", {
            "attention.out": "attn.to_out.0", "attention.q_norm": "attn.norm_q", "attention.k_norm": "attn.norm_k",
            **{f"feed_forward.w{n}": f"feed_forward.linear_{n}" for n in (1, 2, 3)},
            "attention_norm1": "norm1", "attention_norm2": "norm2", **first,
        }),
    )  # fmt: skip


_NATIVE = (
    *_block("layers", True), *_block("noise_refiner", True), *_block("context_refiner", False),
    *between("", "time_caption_embed", {
        "cap_embedder.0": "caption_embedder.0", "cap_embedder.1": "caption_embedder.1",
        "t_embedder.mlp.0": "timestep_embedder.linear_1", "t_embedder.mlp.2": "timestep_embedder.linear_2",
    }),
    *between("final_layer", "norm_out", {"linear": "linear_2", "adaLN_modulation.1": "linear_1"}),
)  # fmt: skip

LUMINA2 = Family(
    "lumina2",
    {
        "transformer": Names(
            native=_NATIVE,
            model=Model("lumina2", "diffusers.Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
        ),
        "text_encoder": GEMMA2_2B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "gemma2_2b": "text_encoder",
    },
    base_models=("lumina2", "lumina-2", "lumina"),
    native=True,
)  # fmt: skip

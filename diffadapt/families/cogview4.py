"""CogView4 6B and GLM-4-9B. Source of the original (SAT) names: Diffusers' conversion script."""

from __future__ import annotations

from dataclasses import replace

from diffadapt.families.base import Family
from diffadapt.families.glm import GLM4_9B
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under

_OURS = "transformer_blocks.{i}"
SIZE = {"num_attention_heads": 32, "attention_head_dim": 128}


def _block(theirs: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{theirs}.attention.query_key_value", under(f"{_OURS}.attn1", ("to_q", "to_k", "to_v"))),
        *between(theirs, _OURS, {
            "attention.dense": "attn1.to_out.0", "mlp.dense_h_to_4h": "ff.net.0.proj", "mlp.dense_4h_to_h": "ff.net.2",
        }),
    )  # fmt: skip


_NATIVE = (
    *_block("transformer.layers.{i}"),
    # What is left of the name where its first word passes for a prefix.
    *(replace(rule, written=False) for rule in _block("layers.{i}")),
    Rule("mixins.adaln.adaln_modules.{i}.1", (f"{_OURS}.norm1.linear",)),
    *between("", "", {
        "mixins.patch_embed.proj": "patch_embed.proj", "mixins.patch_embed.text_proj": "patch_embed.text_proj",
        "mixins.final_layer.linear": "proj_out",
        **{
            f"{theirs}.{layer}": f"time_condition_embed.{ours}.linear_{n}"
            for theirs, ours in (("time_embed", "timestep_embedder"), ("label_emb.0", "condition_embedder"))
            for layer, n in ((0, 1), (2, 2))
        },
    }),
    Rule("mixins.final_layer.adaln.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip

COGVIEW4 = Family(
    "cogview4",
    {
        "transformer": Names(
            native=_NATIVE,
            model=Model("cogview4", "diffusers.CogView4Transformer2DModel", {**SIZE, "num_layers": 28}),
        ),
        "text_encoder": GLM4_9B,
    },
    {"denoiser": "transformer", "transformer": "transformer", "text_encoder": "text_encoder"},
    base_models=("cogview4", "cogview-4"),
)

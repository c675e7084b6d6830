"""OmniGen 1: a Phi-3 that draws; the text's embedding is its own. `mlp.gate_up_proj` is one Linear in Diffusers too.

Source of the original names: Diffusers' conversion script. SimpleTuner trains it under Diffusers' names.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under

# The factors stretch the positions and shape no weight.
_ROPE = {"type": "su", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}

_NATIVE = (
    Rule("llm.layers.{i}.self_attn.qkv_proj", under("layers.{i}.self_attn", ("to_q", "to_k", "to_v"))),
    *between("llm.layers.{i}", "layers.{i}", {
        "self_attn.o_proj": "self_attn.to_out.0",
        **{leaf: leaf for leaf in (
            "mlp.gate_up_proj", "mlp.down_proj", "input_layernorm", "post_attention_layernorm",
        )},
    }),
    *between("", "", {
        "x_embedder.proj": "patch_embedding.output_image_proj",
        "input_x_embedder.proj": "patch_embedding.input_image_proj",
        "time_token.mlp.0": "time_token.linear_1", "time_token.mlp.2": "time_token.linear_2",
        "t_embedder.mlp.0": "t_embedder.linear_1", "t_embedder.mlp.2": "t_embedder.linear_2",
        "llm.embed_tokens": "embed_tokens", "llm.norm": "norm",
        "final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear",
    }),
)  # fmt: skip

OMNIGEN = Family(
    "omnigen",
    {
        "transformer": Names(
            native=_NATIVE,
            model=Model("omnigen", "diffusers.OmniGenTransformer2DModel", {"rope_scaling": _ROPE}),
        ),
    },
    {"denoiser": "transformer", "transformer": "transformer"},
    base_models=("omnigen",),
)

"""Ovis-Image: Flux.1's blocks in 6 + 27 with gated feed-forwards, Qwen3-1.7B (of Ovis 2.5) for text.

Original names: Flux', but the feed-forwards' up and gate projection are two Linears there and one in Diffusers.
Source: Diffusers' conversion script. ComfyUI drops `semantic_` from the names of the text's embedder.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.flux1 import JOINT, MODULATION, SINGLE
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.qwen import QWEN3_1_7B

_FEED_FORWARD = tuple(
    rule
    for theirs, ours in (("img_mlp", "ff"), ("txt_mlp", "ff_context"))
    for rule in (
        Rule(f"double_blocks.{{i}}.{theirs}.up_proj", (f"transformer_blocks.{{i}}.{ours}.net.0.proj",), part=(0, 2)),
        Rule(f"double_blocks.{{i}}.{theirs}.gate_proj", (f"transformer_blocks.{{i}}.{ours}.net.0.proj",), part=(1, 2)),
        Rule(f"double_blocks.{{i}}.{theirs}.down_proj", (f"transformer_blocks.{{i}}.{ours}.net.2",)),
    )
)

NATIVE = (
    *JOINT, *_FEED_FORWARD, *MODULATION, *SINGLE,
    *between("", "", {
        "img_in": "x_embedder", "semantic_txt_in": "context_embedder", "semantic_txt_norm": "context_embedder_norm",
        "txt_in": "context_embedder", "txt_norm": "context_embedder_norm",
        "time_in.in_layer": "timestep_embedder.linear_1", "time_in.out_layer": "timestep_embedder.linear_2",
        "final_layer.linear": "proj_out",
    }),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip

OVIS_IMAGE = Family(
    "ovis_image",
    {
        "transformer": Names(native=NATIVE, model=Model("ovis_image", "diffusers.OvisImageTransformer2DModel")),
        "text_encoder": QWEN3_1_7B,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "qwen3_2b": "text_encoder",
    },
    base_models=("ovis",),
    native=True,
)  # fmt: skip

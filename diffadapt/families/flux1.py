"""Flux.1: dev, schnell, Krea, Fill, Control, Kontext, Redux' base; one transformer, CLIP-L and T5-XXL.

Original names: BFL's. Sources: Diffusers' checkpoint converter, sd-scripts `networks/lora_flux.py`.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.clip import CLIP
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under
from diffadapt.families.t5 import T5_XXL

_DOUBLE, _SINGLE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
_QKV, _ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")

JOINT = (
    Rule("double_blocks.{i}.img_attn.qkv", under(f"{_DOUBLE}.attn", _QKV)),
    Rule("double_blocks.{i}.txt_attn.qkv", under(f"{_DOUBLE}.attn", _ADDED)),
    *between("double_blocks.{i}", _DOUBLE, {
        "img_attn.proj": "attn.to_out.0", "txt_attn.proj": "attn.to_add_out",
        "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
        "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
    }),
)  # fmt: skip
"""The joint attention."""

FEED_FORWARD = between("double_blocks.{i}", _DOUBLE, {
    "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
})  # fmt: skip
MODULATION = (
    *between("double_blocks.{i}", _DOUBLE, {"img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear"}),
    *between("single_blocks.{i}", _SINGLE, {"modulation.lin": "norm.linear"}),
)
SINGLE = (
    Rule("single_blocks.{i}.linear1", (*under(f"{_SINGLE}.attn", _QKV), f"{_SINGLE}.proj_mlp")),
    # A part of linear1 under a name of its own: XLabs' and USO's files.
    Rule("single_blocks.{i}.linear1_qkv", under(f"{_SINGLE}.attn", _QKV), written=False),
    *between("single_blocks.{i}", _SINGLE, {
        "linear2": "proj_out", "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k",
    }),
)  # fmt: skip
BLOCKS = (*JOINT, *FEED_FORWARD, *SINGLE, *MODULATION)
"""The blocks' original names, which Flux' descendants share."""

PARTS = (
    Rule("img_in.proj", ("x_embedder",), written=False),
    *(
        Rule(f"{rule.foreign}.{n}", (target,), written=False)
        for rule in (*JOINT, *SINGLE)
        if rule.written and len(rule.targets) > 1
        for n, target in enumerate(rule.targets)
    ),
)
"""OneTrainer's older layout: the parts of a fused module by number, each an adapter of its own; `img_in.proj`."""

DIFFSYNTH = (
    Rule("blocks.{i}.attn.a_to_qkv", under(f"{_DOUBLE}.attn", _QKV), written=False),
    Rule("blocks.{i}.attn.b_to_qkv", under(f"{_DOUBLE}.attn", _ADDED), written=False),
    Rule("single_blocks.{i}.to_qkv_mlp", (*under(f"{_SINGLE}.attn", _QKV), f"{_SINGLE}.proj_mlp"), written=False),
    *between("single_blocks.{i}", _SINGLE, {"proj_out": "proj_out", "norm.linear": "norm.linear"}),
    *between("blocks.{i}", _DOUBLE, {
        "attn.a_to_out": "attn.to_out.0", "attn.b_to_out": "attn.to_add_out",
        "ff_a.0": "ff.net.0.proj", "ff_a.2": "ff.net.2",
        "ff_b.0": "ff_context.net.0.proj", "ff_b.2": "ff_context.net.2",
        "norm1_a.linear": "norm1.linear", "norm1_b.linear": "norm1_context.linear",
    }),
)  # fmt: skip
"""DiffSynth-Studio's own Flux: `a` is the image's stream, `b` the text's."""

TOP = (
    *between("", "", {
        "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
        **{
            f"{foreign}.{layer}": f"time_text_embed.{ours}.linear_{n}"
            for foreign, ours in (
                ("time_in", "timestep_embedder"), ("vector_in", "text_embedder"), ("guidance_in", "guidance_embedder"),
            )
            for layer, n in (("in_layer", 1), ("out_layer", 2))
        },
    }),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip

FLUX1 = Family(
    "flux1",
    {
        "transformer": Names(
            DIFFSYNTH,
            (*BLOCKS, *TOP, *PARTS),
            model=Model(
                "flux1", "diffusers.FluxTransformer2DModel", {"guidance_embeds": True},
                # Control and Fill see an image beside the noise, and adapters that make dev into them do as well.
                also={"x_embedder": ((3072, 128), (3072, 384))},
            ),
        ),
        "text_encoder": CLIP,
        "text_encoder_2": T5_XXL,
    },
    {
        "denoiser": "transformer", "transformer": "transformer",
        "text_encoder": "text_encoder", "clip_l": "text_encoder",
        # sd-scripts numbers T5 as the third encoder here too.
        "text_encoder_2": "text_encoder_2", "text_encoder_3": "text_encoder_2", "t5xxl": "text_encoder_2",
    },
    base_models=("flux.1", "flux1", "flux-1", "flux"),
    native=True,
)  # fmt: skip

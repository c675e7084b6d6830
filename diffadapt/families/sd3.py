"""Stable Diffusion 3 medium, 3.5 medium and 3.5 large: CLIP-L, CLIP-bigG and T5-XXL.

Original names: the MMDiT reference's, which sd-scripts and OneTrainer train. Source: Diffusers' checkpoint converter.
The last block's text stream ends there: its modulation has two parts instead of six, in the other order in Diffusers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffadapt.families.base import Family, Width
from diffadapt.families.clip import CLIP, WIDTH_LEAVES
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under
from diffadapt.families.t5 import T5_XXL

_THEIRS, _OURS = "joint_blocks.{i}", "transformer_blocks.{i}"
_QKV, _ADDED = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")

BLOCKS = (
    Rule(f"{_THEIRS}.x_block.attn.qkv", under(f"{_OURS}.attn", _QKV)),
    Rule(f"{_THEIRS}.context_block.attn.qkv", under(f"{_OURS}.attn", _ADDED)),
    *between(_THEIRS, _OURS, {
        "x_block.attn.proj": "attn.to_out.0", "context_block.attn.proj": "attn.to_add_out",
        "x_block.mlp.fc1": "ff.net.0.proj", "x_block.mlp.fc2": "ff.net.2",
        "context_block.mlp.fc1": "ff_context.net.0.proj", "context_block.mlp.fc2": "ff_context.net.2",
        "x_block.adaLN_modulation.1": "norm1.linear", "context_block.adaLN_modulation.1": "norm1_context.linear",
    }),
)  # fmt: skip
TOP = (
    *between("", "", {
        "x_embedder.proj": "pos_embed.proj", "final_layer.linear": "proj_out",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "y_embedder.mlp.0": "time_text_embed.text_embedder.linear_1",
        "y_embedder.mlp.2": "time_text_embed.text_embedder.linear_2",
    }),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip
NORMS = between(_THEIRS, _OURS, {
    "x_block.attn.ln_q": "attn.norm_q", "x_block.attn.ln_k": "attn.norm_k",
    "context_block.attn.ln_q": "attn.norm_added_q", "context_block.attn.ln_k": "attn.norm_added_k",
})  # fmt: skip
SECOND_ATTENTION = (
    Rule(f"{_THEIRS}.x_block.attn2.qkv", under(f"{_OURS}.attn2", _QKV)),
    *between(f"{_THEIRS}.x_block.attn2", f"{_OURS}.attn2", {"proj": "to_out.0", "ln_q": "norm_q", "ln_k": "norm_k"}),
)


def _sd3(name: str, config: Mapping[str, Any], native: tuple[Rule, ...], base_models: tuple[str, ...]) -> Family:
    last = Rule(
        f"{_THEIRS}.context_block.adaLN_modulation.1", (f"{_OURS}.norm1_context.linear",),
        exchange=True, at=config["num_layers"] - 1,
    )  # fmt: skip
    model = Model(name, "diffusers.SD3Transformer2DModel", config)
    return Family(
        name,
        {
            "transformer": Names(native=(last, *BLOCKS, *native, *TOP), model=model),
            "text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": T5_XXL,
        },
        {
            "denoiser": "transformer", "transformer": "transformer",
            "text_encoder": "text_encoder", "clip_l": "text_encoder",
            "text_encoder_2": "text_encoder_2", "clip_g": "text_encoder_2",
            "text_encoder_3": "text_encoder_3", "t5xxl": "text_encoder_3",
        },
        widths=(Width("text_encoder", WIDTH_LEAVES, 768), Width("text_encoder_2", WIDTH_LEAVES, 1280)),
        base_models=base_models,
        native=True,
    )  # fmt: skip


_MEDIUM = {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
_NORMED = {"qk_norm": "rms_norm"}

SD3_MEDIUM = _sd3(
    "sd3_medium", {**_MEDIUM, "pos_embed_max_size": 192}, (),
    ("sd3", "sd_3", "stable-diffusion-3", "stable-diffusion-3-medium"),
)  # fmt: skip
SD35_MEDIUM = _sd3(
    "sd35_medium", {**_MEDIUM, **_NORMED, "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384},
    (*NORMS, *SECOND_ATTENTION),
    ("sd3.5", "sd35", "sd3", "sd_3", "stable-diffusion-3.5-medium", "stable-diffusion-3-5-medium"),
)  # fmt: skip
SD35_LARGE = _sd3(
    "sd35_large",
    {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, **_NORMED, "pos_embed_max_size": 192},
    (*NORMS,),
    ("sd3.5", "sd35", "sd3", "sd_3", "stable-diffusion-3.5-large", "stable-diffusion-3-5-large"),
)  # fmt: skip

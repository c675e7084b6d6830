"""Sana: 1.6B, 0.6B, 1.5's 4.8B, and the Sprints, which embed the time and the guidance otherwise; Gemma2-2B.

Sources of the original names: Diffusers' checkpoint converter and conversion script. `ff.conv_depth` is a depthwise
convolution: OneTrainer trains a LoRA on it whose down half spans all channels, which is no change of its weight.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffadapt.families.base import Family
from diffadapt.families.gemma import GEMMA2_2B
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.pixart import ATTENTION

_BLOCK = "transformer_blocks.{i}"

_SHARED = (
    *ATTENTION,
    *between("blocks.{i}.mlp", f"{_BLOCK}.ff", {
        "inverted_conv.conv": "conv_inverted", "depth_conv.conv": "conv_depth", "point_conv.conv": "conv_point",
    }),
    *between("", "", {
        "x_embedder.proj": "patch_embed.proj", "t_block.1": "time_embed.linear", "attention_y_norm": "caption_norm",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1", "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "final_layer.linear": "proj_out", "final_layer.scale_shift_table": "scale_shift_table",
    }),
)  # fmt: skip
_NORMS = between("blocks.{i}", _BLOCK, {
    f"{theirs}.{part}_norm": f"{ours}.norm_{part}"
    for theirs, ours in (("attn", "attn1"), ("cross_attn", "attn2")) for part in "qk"
})  # fmt: skip


def _embedder(foreign: str, ours: str) -> list[Rule]:
    return between(f"{foreign}.mlp", f"time_embed.{ours}", {"0": "linear_1", "2": "linear_2"})


_TIME = _embedder("t_embedder", "emb.timestep_embedder")
_SPRINT = [*_embedder("t_embedder", "timestep_embedder"), *_embedder("cfg_embedder", "guidance_embedder")]

_0_6B = {
    "num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
    "cross_attention_dim": 1152,
}  # fmt: skip
_NORMED = {"qk_norm": "rms_norm_across_heads"}
_GUIDED = {**_NORMED, "guidance_embeds": True}


def _sana(name: str, native: list[Rule], base_models: tuple[str, ...], config: Mapping[str, object]) -> Family:
    model = Model(name, "diffusers.SanaTransformer2DModel", config)
    return Family(
        name,
        {"transformer": Names(native=(*_SHARED, *native), model=model), "text_encoder": GEMMA2_2B},
        {
            "denoiser": "transformer", "transformer": "transformer",
            "text_encoder": "text_encoder", "gemma2_2b": "text_encoder",
        },
        base_models=(name.replace("_", "-"), name, *base_models),
    )  # fmt: skip


# The 1.6B of Sana 1.5 has the norms, the older one lacks them and is alike else: one family.
SANA_1_6B = _sana("sana_1_6b", [*_NORMS, *_TIME], ("sana_1600m", "sana1.5_1.6b", "sana"), _NORMED)
SANA_0_6B = _sana("sana_0_6b", _TIME, ("sana_600m", "sana"), _0_6B)
SANA_4_8B = _sana("sana_4_8b", [*_NORMS, *_TIME], ("sana1.5_4.8b", "sana"), {**_NORMED, "num_layers": 60})
SANA_SPRINT_1_6B = _sana("sana_sprint_1_6b", [*_NORMS, *_SPRINT], ("sana_sprint", "sana-sprint"), _GUIDED)
SANA_SPRINT_0_6B = _sana("sana_sprint_0_6b", [*_NORMS, *_SPRINT], ("sana_sprint", "sana-sprint"), {**_0_6B, **_GUIDED})

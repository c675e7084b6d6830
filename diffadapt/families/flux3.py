"""Flux.3: blocks for each kind of token (image, conditioning image, text), then single-stream blocks.

Original names: BFL's, with nothing fused. Source: Diffusers' checkpoint converter. `repa_projectors` exist in training
only. The flow-map packages (few steps) have an embedder of the target time, so the layout is measured with it.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.qwen import QWEN3_VL_4B

_LEAVES = {
    "q_proj": "attn.to_q", "k_proj": "attn.to_k", "v_proj": "attn.to_v", "attn_out": "attn.to_out.0",
    "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k",
    "mlp_in": "ff.linear_in", "mlp_out": "ff.linear_out",
}  # fmt: skip
_STREAMS = ("image", "image_cond", "txt")

NATIVE = (
    *(
        rule
        for theirs, ours in {
            "content_mode_blocks.image.{i}": "mode_blocks.image.{i}",
            "content_mode_blocks.image_cond.{i}": "mode_blocks.image_cond.{i}",
            "txt_mode_blocks.{i}": "txt_mode_blocks.{i}",
            "single_blocks.{i}": "single_transformer_blocks.{i}",
        }.items()
        for rule in between(theirs, ours, _LEAVES)
    ),
    *between("", "", {
        "emb_in.image": "x_embedders.image", "emb_in.image_cond": "x_embedders.image_cond",
        "txt_in": "context_embedder", "final_layer.image.linear": "proj_out",
        "time_in.in_layer": "timestep_embedder.linear_1", "time_in.out_layer": "timestep_embedder.linear_2",
        "ref_time_in.in_layer": "target_timestep_embedder.linear_1",
        "ref_time_in.out_layer": "target_timestep_embedder.linear_2",
        **{
            f"{part}_stream_modulations.{stream}.lin": f"{part}_stream_modulations.{stream}.linear"
            for part in ("early", "single") for stream in _STREAMS
        },
    }),
    Rule("final_layer.image.adaLN_modulation.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip

FLUX3 = Family(
    "flux3",
    {
        "transformer": Names(
            native=NATIVE, model=Model("flux3", "diffusers.Flux3Transformer2DModel", {"flow_map": True})
        ),
        "text_encoder": QWEN3_VL_4B,
    },
    {"denoiser": "transformer", "transformer": "transformer", "text_encoder": "text_encoder"},
    base_models=("flux.3", "flux3", "flux-3", "flux_3"),
    native=True,
)

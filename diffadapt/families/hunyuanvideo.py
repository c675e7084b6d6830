"""HunyuanVideo: text and image to video; Llama-3-8B and CLIP-L. And the names that the later Hunyuan models share.

Original names: Tencent's, which musubi-tuner and OneTrainer use; ComfyUI spells the same modules as Flux does. Sources:
Diffusers' checkpoint converter, ComfyUI's model definition as its converters describe it.
"""

from __future__ import annotations

from collections.abc import Mapping

from diffadapt.families.base import Family
from diffadapt.families.clip import CLIP
from diffadapt.families.llama import LLAMA3_8B
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under

_DOUBLE, _SINGLE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"
_REFINER, _REFINED = "txt_in.individual_token_refiner.blocks.{i}", "context_embedder.token_refiner.refiner_blocks.{i}"
_ATTENTION = {"img": ("to_q", "to_k", "to_v"), "txt": ("add_q_proj", "add_k_proj", "add_v_proj")}

FUSED = tuple(
    Rule(f"double_blocks.{{i}}.{stream}_attn_qkv", under(f"{_DOUBLE}.attn", parts))
    for stream, parts in _ATTENTION.items()
)
SPLIT = between("double_blocks.{i}", _DOUBLE, {
    f"{stream}_attn_{letter}": f"attn.{part}"
    for stream, parts in _ATTENTION.items()
    for letter, part in zip("qkv", parts, strict=True)
})  # fmt: skip
"""Query, key and value of the double blocks, in one and apart."""

DOUBLE = between("double_blocks.{i}", _DOUBLE, {
    "img_attn_proj": "attn.to_out.0", "txt_attn_proj": "attn.to_add_out",
    "img_attn_q_norm": "attn.norm_q", "img_attn_k_norm": "attn.norm_k",
    "txt_attn_q_norm": "attn.norm_added_q", "txt_attn_k_norm": "attn.norm_added_k",
    "img_mlp.fc1": "ff.net.0.proj", "img_mlp.fc2": "ff.net.2",
    "txt_mlp.fc1": "ff_context.net.0.proj", "txt_mlp.fc2": "ff_context.net.2",
    "img_mod.linear": "norm1.linear", "txt_mod.linear": "norm1_context.linear",
})  # fmt: skip
SINGLE = (
    Rule("single_blocks.{i}.linear1", (*under(f"{_SINGLE}.attn", ("to_q", "to_k", "to_v")), f"{_SINGLE}.proj_mlp")),
    *between("single_blocks.{i}", _SINGLE, {
        "linear2": "proj_out", "modulation.linear": "norm.linear", "q_norm": "attn.norm_q", "k_norm": "attn.norm_k",
    }),
)  # fmt: skip
TEXT = (
    Rule(f"{_REFINER}.self_attn_qkv", under(f"{_REFINED}.attn", ("to_q", "to_k", "to_v"))),
    *between(_REFINER, _REFINED, {
        "self_attn_proj": "attn.to_out.0", "mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2",
        # Two gates, in the same order on both sides, although Diffusers calls the module as it calls a final norm.
        "adaLN_modulation.1": "norm_out.linear", "norm1": "norm1", "norm2": "norm2",
    }),
    *between("txt_in", "context_embedder", {
        "input_embedder": "proj_in",
        "t_embedder.mlp.0": "time_text_embed.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "time_text_embed.timestep_embedder.linear_2",
        "c_embedder.linear_1": "time_text_embed.text_embedder.linear_1",
        "c_embedder.linear_2": "time_text_embed.text_embedder.linear_2",
    }),
)  # fmt: skip
ENDS = (
    *between("", "", {"img_in.proj": "x_embedder.proj", "final_layer.linear": "proj_out"}),
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), exchange=True),
)

COMFY_DOUBLE = between("double_blocks.{i}", _DOUBLE, {
    "img_attn.norm.query_norm": "attn.norm_q", "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q", "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_mlp.0": "ff.net.0.proj", "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj", "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear", "txt_mod.lin": "norm1_context.linear",
})  # fmt: skip
COMFY_SINGLE = between("single_blocks.{i}", _SINGLE, {
    "modulation.lin": "norm.linear", "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k",
})  # fmt: skip
COMFY_TEXT = (
    *between(_REFINER, _REFINED, {"mlp.0": "ff.net.0.proj", "mlp.2": "ff.net.2"}),
    *between("txt_in", "context_embedder.time_text_embed", {
        "t_embedder.in_layer": "timestep_embedder.linear_1", "t_embedder.out_layer": "timestep_embedder.linear_2",
        "c_embedder.in_layer": "text_embedder.linear_1", "c_embedder.out_layer": "text_embedder.linear_2",
    }),
)  # fmt: skip
"""Where ComfyUI's names differ by more than a dot."""


def embedders(places: Mapping[str, str], first: str = "mlp.0", second: str = "mlp.2") -> list[Rule]:
    """Rules for embedders of two layers each: the original's name -> Diffusers'."""
    return between("", "", {
        f"{theirs}.{layer}": f"{ours}.linear_{n}"
        for theirs, ours in places.items() for layer, n in ((first, 1), (second, 2))
    })  # fmt: skip


_TIMES = {
    "time_in": "time_text_embed.timestep_embedder", "guidance_in": "time_text_embed.guidance_embedder",
}  # fmt: skip

SPELLINGS = (
    *COMFY_DOUBLE, *COMFY_SINGLE, *COMFY_TEXT, *embedders(_TIMES, "in_layer", "out_layer"),
)  # fmt: skip
NATIVE = (
    *FUSED, *DOUBLE, *SINGLE, *TEXT, *ENDS, *embedders(_TIMES),
    *embedders({"vector_in": "time_text_embed.text_embedder"}, "in_layer", "out_layer"),
)  # fmt: skip
SLOTS = {
    "denoiser": "transformer", "transformer": "transformer",
    # The other way round than Flux: CLIP is the second encoder.
    "text_encoder": "text_encoder", "llama": "text_encoder",
    "text_encoder_2": "text_encoder_2", "clip_l": "text_encoder_2",
}  # fmt: skip

HUNYUAN_VIDEO = Family(
    "hunyuan_video",
    {
        "transformer": Names(
            SPELLINGS, NATIVE, Model(
                "hunyuan_video", "diffusers.HunyuanVideoTransformer3DModel",
                # Images to video by latents beside the noise; the same of SkyReels.
                also={"x_embedder.proj": ((3072, 33, 1, 2, 2), (3072, 32, 1, 2, 2))},
            )
        ),
        "text_encoder": LLAMA3_8B,
        "text_encoder_2": CLIP,
    },
    SLOTS,
    base_models=("hunyuan_video", "hunyuan-video", "hunyuanvideo", "tencent/hunyuanvideo"),
    native=True,
)  # fmt: skip

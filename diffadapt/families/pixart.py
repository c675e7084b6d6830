"""PixArt: sigma and alpha, one transformer of 28 blocks, and T5-XXL.

alpha's 1024 px model takes the image's size and aspect ratio as well, in two embedders that sigma (and alpha at
512 px) lacks; all else is alike, so that adapters of the blocks fit both. Sources of the original names: Diffusers'
conversion scripts.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between, under
from diffadapt.families.t5 import T5_XXL

_BLOCK = "transformer_blocks.{i}"

ATTENTION = (
    Rule("blocks.{i}.attn.qkv", under(f"{_BLOCK}.attn1", ("to_q", "to_k", "to_v"))),
    Rule("blocks.{i}.cross_attn.kv_linear", under(f"{_BLOCK}.attn2", ("to_k", "to_v"))),
    *between("blocks.{i}", _BLOCK, {
        "attn.proj": "attn1.to_out.0", "cross_attn.q_linear": "attn2.to_q", "cross_attn.proj": "attn2.to_out.0",
        "scale_shift_table": "scale_shift_table",
    }),
)  # fmt: skip
"""Attention by its original names, which Sana took over."""

_NATIVE = (
    *ATTENTION,
    *between("blocks.{i}", _BLOCK, {"mlp.fc1": "ff.net.0.proj", "mlp.fc2": "ff.net.2"}),
    *between("", "", {
        "x_embedder.proj": "pos_embed.proj", "final_layer.linear": "proj_out",
        "final_layer.scale_shift_table": "scale_shift_table",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1", "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "t_block.1": "adaln_single.linear",
        "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
    }),
)  # fmt: skip
_CONDITIONS = between("", "adaln_single.emb", {
    f"{foreign}.mlp.{layer}": f"{ours}.linear_{n}"
    for foreign, ours in (("csize_embedder", "resolution_embedder"), ("ar_embedder", "aspect_ratio_embedder"))
    for layer, n in ((0, 1), (2, 2))
})  # fmt: skip


def _pixart(name: str, native: tuple[Rule, ...], conditions: bool) -> Family:
    config = {"caption_channels": 4096, "use_additional_conditions": conditions}
    transformer = Names(native=native, model=Model(name, "diffusers.PixArtTransformer2DModel", config))
    return Family(
        name,
        {"transformer": transformer, "text_encoder": T5_XXL},
        {
            "denoiser": "transformer", "transformer": "transformer",
            "text_encoder": "text_encoder", "t5xxl": "text_encoder",
        },
        base_models=(name.replace("_", "-"), name, "pixart"),
        native=True,
    )  # fmt: skip


PIXART_SIGMA = _pixart("pixart_sigma", _NATIVE, False)
PIXART_ALPHA = _pixart("pixart_alpha", (*_NATIVE, *_CONDITIONS), True)

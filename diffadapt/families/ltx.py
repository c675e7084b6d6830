"""LTX-Video 2B and 13B; T5-XXL. The original's blocks have Diffusers' names.

Source: Diffusers' checkpoint converter.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.t5 import T5_XXL

_CLASS = "diffusers.LTXVideoTransformer3DModel"


def adaptive(theirs: str, ours: str) -> list[Rule]:
    """Rules for one `AdaLayerNormSingle`."""
    layers = ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
    return between(theirs, ours, {layer: layer for layer in layers})


def norms(block: str, *attentions: str) -> list[Rule]:
    """Rules for the norms of queries and keys."""
    return [
        Rule(f"{block}.{attention}.{letter}_norm", (f"{block}.{attention}.norm_{letter}",))
        for attention in attentions
        for letter in "qk"
    ]


NATIVE = (
    *between("", "", {"patchify_proj": "proj_in"}),
    *adaptive("adaln_single", "time_embed"),
    *norms("transformer_blocks.{i}", "attn1", "attn2"),
)
_SLOTS = {
    "denoiser": "transformer", "transformer": "transformer", "text_encoder": "text_encoder", "t5xxl": "text_encoder",
}  # fmt: skip

LTX_2B = Family(
    "ltx_2b",
    {"transformer": Names(native=NATIVE, model=Model("ltx_2b", _CLASS)), "text_encoder": T5_XXL},
    _SLOTS,
    base_models=("ltx-video", "ltx_video", "ltxv", "lightricks/ltx-video"),
    native=True,
)
LTX_13B = Family(
    "ltx_13b",
    {
        "transformer": Names(
            native=NATIVE,
            model=Model(
                "ltx_13b", _CLASS, {"num_layers": 48, "attention_head_dim": 128, "cross_attention_dim": 4096}
            ),
        ),
        "text_encoder": T5_XXL,
    },
    _SLOTS,
    base_models=("ltx-video-0.9.7", "ltx-video-0.9.8", "ltxv-13b", "lightricks/ltx-video-0.9.7"),
    native=True,
)  # fmt: skip

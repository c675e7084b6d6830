"""Wan 2.1 and 2.2: text, image and first-and-last-frame to video, VACE, Animate; UMT5-XXL.

Original names: Wan-AI's. Sources: Diffusers' checkpoint converters, musubi-tuner, ai-toolkit. Within a size the models
have the same blocks, so a file seldom tells more than the size; Wan 2.2 A14B splits the noise levels between two equal
transformers, and a file for either says so in its name at best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.t5 import UMT5_XXL

_ATTENTION = {"self_attn": "attn1", "cross_attn": "attn2"}
_PROJECTIONS = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_IMAGE = {"k_img": "add_k_proj", "v_img": "add_v_proj"}
_NORMS = ("norm_q", "norm_k")


def _blocks(blocks: str, image: bool = False) -> list[Rule]:
    """The original names of one list of blocks. image: with keys and values of the image in the cross attention."""
    leaves = {
        f"{theirs}.{foreign}": f"{ours}.{leaf}"
        for theirs, ours in _ATTENTION.items()
        for foreign, leaf in (*_PROJECTIONS.items(), *zip(_NORMS, _NORMS, strict=True))
    }
    if image:
        leaves |= {f"cross_attn.{foreign}": f"attn2.{leaf}" for foreign, leaf in _IMAGE.items()}
        leaves["cross_attn.norm_k_img"] = "attn2.norm_added_k"
    # The third norm of the original is the affine one, which Diffusers counts as the second.
    leaves |= {
        "ffn.0": "ffn.net.0.proj", "ffn.2": "ffn.net.2", "norm3": "norm2", "modulation": "scale_shift_table",
    }  # fmt: skip
    return between(f"{blocks}.{{i}}", f"{blocks}.{{i}}", leaves)


_MIXED = between("blocks.{i}", "blocks.{i}", {
    f"{theirs}.to_out.0": f"{ours}.to_out.0" for theirs, ours in _ATTENTION.items()
})  # fmt: skip
"""Original and Diffusers' names in one path: ai-toolkit's renamer wanted a dot that flat names do not have."""

_TOP = between("", "", {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out", "head.modulation": "scale_shift_table",
})  # fmt: skip
_IMAGE_TOP = between("img_emb.proj", "condition_embedder.image_embedder", {
    "0": "norm1", "1": "ff.net.0.proj", "3": "ff.net.2", "4": "norm2",
})  # fmt: skip
_VACE = [
    *_blocks("vace_blocks"),
    *between("vace_blocks.{i}", "vace_blocks.{i}", {"before_proj": "proj_in", "after_proj": "proj_out"}),
]
_ANIMATE = [
    *between("face_adapter.fuser_blocks.{i}", "face_adapter.{i}", {
        "linear1_q": "to_q", "linear2": "to_out", "q_norm": "norm_q", "k_norm": "norm_k",
    }),
    Rule("face_adapter.fuser_blocks.{i}.linear1_kv", ("face_adapter.{i}.to_k", "face_adapter.{i}.to_v")),
    *between("face_encoder", "face_encoder", {f"{conv}.conv": conv for conv in ("conv1_local", "conv2", "conv3")}),
]  # fmt: skip

_SMALL = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
_FIVE = {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48}
_FROM_IMAGE = {"in_channels": 36, "image_dim": 1280, "added_kv_proj_dim": 5120}


def _names(layout: str, config: Mapping[str, Any], cls: str = "Wan", extra: Sequence[Rule] = ()) -> Names:
    image = "image_dim" in config
    native = [*_TOP, *_blocks("blocks", image), *(_IMAGE_TOP if image else ()), *extra]
    return Names(_MIXED, native, Model(layout, f"diffusers.{cls}Transformer3DModel", config))


def _family(name: str, transformer: Names, *base_models: str, two: bool = False, rare: bool = False) -> Family:
    """two: the pipeline may hold a second transformer for the low noise."""
    parts = ("transformer", "transformer_2") if two else ("transformer",)
    return Family(
        name,
        {**dict.fromkeys(parts, transformer), "text_encoder": UMT5_XXL},
        {
            "denoiser": "transformer", **{part: part for part in parts},
            "text_encoder": "text_encoder", "umt5xxl": "text_encoder", "t5xxl": "text_encoder",
        },
        base_models=base_models, native=True, rare=rare,
    )  # fmt: skip


_T2V_14B = _names("wan21_t2v_14b", {})

# musubi-tuner says "wan2.1" and ai-toolkit "wan_2.1" for every size and kind.
WAN21_T2V_14B = _family("wan21_t2v_14b", _T2V_14B, "wan-ai/wan2.1-t2v-14b", "wan_2.1", "wan2.1")
WAN21_T2V_1_3B = _family(
    "wan21_t2v_1_3b", _names("wan21_t2v_1_3b", _SMALL), "wan-ai/wan2.1-t2v-1.3b", "wan_2.1", "wan2.1"
)
WAN21_I2V_14B = _family(
    "wan21_i2v_14b", _names("wan21_i2v_14b", _FROM_IMAGE),
    "wan-ai/wan2.1-i2v", "wan-ai/wan2.1-flf2v", "wan_2.1", "wan2.1",
)  # fmt: skip
# Alibaba-PAI's small model sees images too.
WAN21_FUN_1_3B = _family(
    "wan21_fun_1_3b", _names("wan21_fun_1_3b", {**_SMALL, **_FROM_IMAGE, "added_kv_proj_dim": 1536}),
    "alibaba-pai/wan2.1-fun-1.3b", "alibaba-pai/wan2.1-fun-v1.1-1.3b",
)  # fmt: skip
WAN22_T2V_A14B = _family("wan22_t2v_a14b", _T2V_14B, "wan-ai/wan2.2-t2v", "wan_2.2_14b", "wan2.2", "wan22", two=True)
WAN22_I2V_A14B = _family(
    "wan22_i2v_a14b", _names("wan22_i2v_a14b", {"in_channels": 36}),
    "wan-ai/wan2.2-i2v", "wan_2.2_14b", "wan2.2", "wan22", two=True,
)  # fmt: skip
WAN22_TI2V_5B = _family(
    "wan22_ti2v_5b", _names("wan22_ti2v_5b", _FIVE), "wan-ai/wan2.2-ti2v", "wan_2.2_5b", "wan2.2", "wan22"
)
WAN21_VACE_14B = _family(
    "wan21_vace_14b", _names("wan21_vace_14b", {}, "WanVACE", _VACE), "wan-ai/wan2.1-vace-14b", "wan_2.1_vace",
    two=True,
)  # fmt: skip
WAN21_VACE_1_3B = _family(
    "wan21_vace_1_3b",
    _names("wan21_vace_1_3b", {**_SMALL, "vace_layers": [*range(0, 30, 2)]}, "WanVACE", _VACE),
    "wan-ai/wan2.1-vace-1.3b", "wan_2.1_vace",
)  # fmt: skip
WAN22_ANIMATE = _family(
    "wan22_animate", _names("wan22_animate", _FROM_IMAGE, "WanAnimate", _ANIMATE), "wan-ai/wan2.2-animate"
)

# Wan-Animate 2 keeps the original's names in Diffusers but for the projections; its own checkpoint wraps each block.
_ANIMATE2_ATTENTIONS = {
    f"{attention}.{foreign}": f"{attention}.{leaf}"
    for attention in _ATTENTION
    for foreign, leaf in (_PROJECTIONS if attention == "self_attn" else _PROJECTIONS | _IMAGE).items()
} | {"cross_attn.norm_k_img": "cross_attn.norm_added_k"}
_ANIMATE2_SAME = (
    "norm3", "ffn.0", "ffn.2", "modulation", *(f"{attention}.{norm}" for attention in _ATTENTION for norm in _NORMS),
)  # fmt: skip
WAN_ANIMATE2 = _family(
    "wan_animate2",
    Names(
        between("blocks.{i}", "blocks.{i}", _ANIMATE2_ATTENTIONS),
        between("blocks.{i}.block", "blocks.{i}", {**_ANIMATE2_ATTENTIONS, **{name: name for name in _ANIMATE2_SAME}}),
        Model("wan_animate2", "diffusers.WanAnimate2Transformer3DModel"),
    ),
    "wan-ai/wan-animate-2", rare=True,
)  # fmt: skip

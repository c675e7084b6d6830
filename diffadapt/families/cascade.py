"""Stable Cascade: the prior (stage C, which trainers adapt), the decoder (stage B) and CLIP-bigG; and the lite pair.

Diffusers keeps the original names but for the attention. Sources: Diffusers' checkpoint converter, OneTrainer.

A block's `depthwise` has one input channel a group. OneTrainer's LoRA of it reads all channels and adds one and the
same map to each: a change that the layer's weight cannot hold.
"""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.clip import CLIP
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, under

_CLS = "diffusers.StableCascadeUNet"


def _attention(block: str) -> tuple[Rule, ...]:
    parts = ("to_q", "to_k", "to_v")
    return (
        Rule(f"{block}.attn.in_proj", under(block, parts)),
        # Trainers that cannot act on the fused projection have cut it, and kept the level above.
        *(Rule(f"{block}.attn.{part}", (f"{block}.{part}",), written=False) for part in parts),
        # OneTrainer's ORIGINAL numbers the parts.
        *(Rule(f"{block}.attn.in_proj.{n}", (f"{block}.{part}",), written=False) for n, part in enumerate(parts)),
        Rule(f"{block}.attn.out_proj", (f"{block}.to_out.0",)),
    )


_NATIVE = (*_attention("down_blocks.{i}.{j}.attention"), *_attention("up_blocks.{i}.{j}.attention"))
_POOLED = Rule("clip_mapper", ("clip_txt_pooled_mapper",))

_RES, _ATTENDING = ["SDCascadeResBlock", "SDCascadeTimestepBlock"], "SDCascadeAttnBlock"
_STAGE_C = {
    "down_blocks_repeat_mappers": [1, 1], "up_blocks_repeat_mappers": [1, 1],
    "block_types_per_layer": [[*_RES, _ATTENDING]] * 2, "clip_text_in_channels": 1280,
    "clip_text_pooled_in_channels": 1280, "clip_image_in_channels": 768, "dropout": [0.1, 0.1],
    "timestep_conditioning_type": ["sca", "crp"], "switch_level": [False],
}  # fmt: skip
_STAGE_B = {
    "in_channels": 4, "out_channels": 4, "patch_size": 2, "conditioning_dim": 1280,
    "down_blocks_repeat_mappers": [1, 1, 1, 1],
    "block_types_per_layer": [_RES, _RES, [*_RES, _ATTENDING], [*_RES, _ATTENDING]],
    "clip_text_pooled_in_channels": 1280, "effnet_in_channels": 16, "pixel_mapper_in_channels": 3,
    "dropout": [0, 0, 0.1, 0.1], "timestep_conditioning_type": ["sca"],
}  # fmt: skip


def _cascade(name: str, prior: dict[str, object], decoder: dict[str, object]) -> Family:
    return Family(
        name,
        {
            "prior": Names(native=_NATIVE, model=Model(f"{name}_prior", _CLS, {**_STAGE_C, **prior})),
            "decoder": Names(
                native=(*_NATIVE, _POOLED), model=Model(f"{name}_decoder", _CLS, {**_STAGE_B, **decoder})
            ),
            "text_encoder": CLIP,
        },
        {
            # "Denoiser" is stage C: nobody trains the decoder's.
            "denoiser": "prior", "unet": "prior", "prior": "prior", "decoder": "decoder",
            "text_encoder": "text_encoder", "prior_text_encoder": "text_encoder", "clip_g": "text_encoder",
        },
        base_models=("stable_cascade", "stable-cascade"),
        native=True,
    )  # fmt: skip


STABLE_CASCADE = _cascade(
    "stable_cascade",
    {
        "conditioning_dim": 2048, "block_out_channels": [2048, 2048], "num_attention_heads": [32, 32],
        "down_num_layers_per_block": [8, 24], "up_num_layers_per_block": [24, 8],
    },
    {
        "block_out_channels": [320, 640, 1280, 1280], "num_attention_heads": [0, 0, 20, 20],
        "down_num_layers_per_block": [2, 6, 28, 6], "up_num_layers_per_block": [6, 28, 6, 2],
        "up_blocks_repeat_mappers": [3, 3, 2, 2],
    },
)  # fmt: skip
STABLE_CASCADE_LITE = _cascade(
    "stable_cascade_lite",
    {
        "conditioning_dim": 1536, "block_out_channels": [1536, 1536], "num_attention_heads": [24, 24],
        "down_num_layers_per_block": [4, 12], "up_num_layers_per_block": [12, 4],
    },
    {
        "block_out_channels": [320, 576, 1152, 1152], "num_attention_heads": [0, 9, 18, 18],
        "down_num_layers_per_block": [2, 4, 14, 4], "up_num_layers_per_block": [4, 14, 4, 2],
        "up_blocks_repeat_mappers": [2, 2, 2, 2],
    },
)  # fmt: skip

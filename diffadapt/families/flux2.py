"""Flux.2: dev, klein 4B and klein 9B (base, distilled and KV): one class, one naming, three sizes.

Original names: BFL's. Sources: Diffusers' checkpoint converter, musubi-tuner `networks/lora_flux_2.py`. The single
blocks' projections are one Linear here as well, and a feed-forward's gate and up projection too: none of them is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffadapt.families.base import Family
from diffadapt.families.flux1 import JOINT
from diffadapt.families.mistral import MISTRAL3_24B
from diffadapt.families.model import Model
from diffadapt.families.names import Names, Rule, between
from diffadapt.families.qwen import QWEN3_4B, QWEN3_8B

_DOUBLE, _SINGLE = "transformer_blocks.{i}", "single_transformer_blocks.{i}"

NATIVE = (
    *JOINT,
    *between("double_blocks.{i}", _DOUBLE, {
        "img_mlp.0": "ff.linear_in", "img_mlp.2": "ff.linear_out",
        "txt_mlp.0": "ff_context.linear_in", "txt_mlp.2": "ff_context.linear_out",
    }),
    *between("single_blocks.{i}", _SINGLE, {
        "linear1": "attn.to_qkv_mlp_proj", "linear2": "attn.to_out",
        "norm.query_norm": "attn.norm_q", "norm.key_norm": "attn.norm_k",
    }),
    # ComfyUI's own name for the attention's third of the fused rows.
    Rule("single_blocks.{i}.linear1_qkv", (f"{_SINGLE}.attn.to_qkv_mlp_proj",), part=(0, 3), written=False),
    *between("", "", {
        "img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out",
        "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
        "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2",
        **{
            f"{stream}.lin": f"{stream}.linear"
            for stream in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
        },
    }),
    # Diffusers' checkpoint converter exchanges the halves; its LoRA converter forgets to.
    Rule("final_layer.adaLN_modulation.1", ("norm_out.linear",), exchange=True),
)  # fmt: skip
GUIDANCE = between("guidance_in", "time_guidance_embed.guidance_embedder", {
    "in_layer": "linear_1", "out_layer": "linear_2",
})  # fmt: skip


def _flux2(
    name: str, config: Mapping[str, Any], encoder: Names, encoder_slot: str, base_models: tuple[str, ...]
) -> Family:
    model = Model(name, "diffusers.Flux2Transformer2DModel", config)
    native = NATIVE if "guidance_embeds" in config else (*NATIVE, *GUIDANCE)
    return Family(
        name,
        {"transformer": Names(native=native, model=model), "text_encoder": encoder},
        {
            "denoiser": "transformer", "transformer": "transformer",
            "text_encoder": "text_encoder", encoder_slot: "text_encoder",
        },
        base_models=base_models,
        native=True,
    )  # fmt: skip


_SPELLINGS = ("flux.2", "flux2", "flux-2", "flux_2")


def _klein(size: str) -> tuple[str, ...]:
    return tuple(
        f"{begin}{joint}klein{joint}{base}{size}"
        for begin in _SPELLINGS
        for joint in "-_"
        for base in ("", "base-", "base_")
    )


FLUX2 = _flux2("flux2", {}, MISTRAL3_24B, "mistral3_24b", _SPELLINGS)
FLUX2_KLEIN_4B = _flux2(
    "flux2_klein_4b",
    {
        "num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680,
        "guidance_embeds": False,
    },
    QWEN3_4B, "qwen3_4b", _klein("4b"),
)  # fmt: skip
FLUX2_KLEIN_9B = _flux2(
    "flux2_klein_9b",
    {
        "num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288,
        "guidance_embeds": False,
    },
    QWEN3_8B, "qwen3_8b", _klein("9b"),
)  # fmt: skip

"""Flux and the models that are built as it is: double-stream blocks, then single-stream ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.zoo.specimen import Specimen, noise

TOKENS, SIDE = 5, 3
FLUX: dict[str, Any] = {
    "patch_size": 1, "in_channels": 4, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16,
    "num_attention_heads": 3, "joint_attention_dim": 32, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def places(width: int) -> dict[str, Tensor]:
    """Where text and image tokens stand."""
    image = torch.zeros(SIDE * SIDE, width)
    image[:, 1], image[:, 2] = torch.arange(9) // SIDE, torch.arange(9) % SIDE
    return {"img_ids": image, "txt_ids": torch.zeros(TOKENS, width)}


def tokens(channels: int = 4, width: int = 32, ids: int = 3, **others: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, SIDE * SIDE, channels), "encoder_hidden_states": noise(1, TOKENS, width),
        "timestep": torch.tensor([0.5]), **places(ids), **others,
    }  # fmt: skip


def _pooled() -> dict[str, Any]:
    return tokens(pooled_projections=noise(1, 24), guidance=torch.tensor([3.5]))


def _flux3() -> dict[str, Any]:
    return tokens(ids=4, image_cond_hidden_states=noise(1, 4, 4), image_cond_ids=torch.ones(4, 4))


def _fibo() -> dict[str, Any]:
    return tokens(text_encoder_layers=[noise(1, TOKENS, 16) for _ in range(4)])


def _qwen() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 16, 16), "encoder_hidden_states": noise(1, 6, 20), "timestep": torch.tensor([0.5]),
        "encoder_hidden_states_mask": torch.ones(1, 6, dtype=torch.long), "img_shapes": [(1, 4, 4)],
    }  # fmt: skip


def _qwen21() -> dict[str, Any]:
    slots = torch.zeros(1, 5, dtype=torch.bool)
    slots[:, 4:] = True  # one slot of the language model stands for the image's 2 x 2 tokens
    return {
        "hidden_states": noise(1, 4, 16), "encoder_hidden_states": noise(1, 4, 20), "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 2, 2)]], "img_mask": slots,
    }  # fmt: skip


def _hidream() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 4, 8, 8), "encoder_hidden_states_t5": noise(1, TOKENS, 8),
        "encoder_hidden_states_llama3": noise(4, 1, TOKENS, 6), "pooled_embeds": noise(1, 8),
        "timesteps": torch.tensor([500]),
    }  # fmt: skip


FLUX_KIN = {
    "flux1": Specimen(
        "FluxTransformer2DModel", {**FLUX, "pooled_projection_dim": 24, "guidance_embeds": True}, _pooled
    ),
    "chroma": Specimen(
        "ChromaTransformer2DModel",
        {**FLUX, "approximator_num_channels": 8, "approximator_hidden_dim": 16, "approximator_layers": 2},
        tokens,
    ),
    "flux2": Specimen(
        "Flux2Transformer2DModel",
        {**FLUX, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16},
        lambda: tokens(ids=4, guidance=torch.tensor([3.5])),
    ),
    "flux3": Specimen(
        "Flux3Transformer2DModel",
        {**{k: v for k, v in FLUX.items() if k != "patch_size"}, "cond_in_channels": 4, "axes_dims_rope": (4, 4, 4, 4),
         "timestep_channels": 16},
        _flux3,
    ),
    "longcat_image": Specimen(
        "LongCatImageTransformer2DModel", {**FLUX, "pooled_projection_dim": 24}, tokens
    ),
    "ovis_image": Specimen("OvisImageTransformer2DModel", {**FLUX, "out_channels": 4}, tokens),
    "bria": Specimen("BriaTransformer2DModel", {**FLUX, "axes_dims_rope": [0, 8, 8]}, tokens),
    "bria_fibo": Specimen(
        "BriaFiboTransformer2DModel", {**FLUX, "axes_dims_rope": [0, 8, 8], "text_encoder_dim": 16}, _fibo,
    ),
    "qwen_image": Specimen(
        "QwenImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 2, "attention_head_dim": 16,
         "num_attention_heads": 3, "joint_attention_dim": 20, "axes_dims_rope": (8, 4, 4)},
        _qwen,
    ),
    "qwen_image_21": Specimen(
        "QwenImage21Transformer2DModel",
        {"in_channels": 16, "out_channels": 16, "num_layers": 2, "attention_head_dim": 16, "num_attention_heads": 3,
         "context_in_dim": 20, "axes_dims_rope": (4, 6, 6)},
        _qwen21,
    ),
    "nucleus": Specimen(
        "NucleusMoEImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 16, "out_channels": 4, "num_layers": 4, "attention_head_dim": 16,
         "num_attention_heads": 3, "joint_attention_dim": 20, "axes_dims_rope": (8, 4, 4), "num_experts": 2,
         "moe_intermediate_dim": 24, "capacity_factors": [2.0] * 4, "dense_moe_strategy": "leave_first_block_dense"},
        _qwen,
    ),
    "hidream": Specimen(
        "HiDreamImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 1,
         "attention_head_dim": 8, "num_attention_heads": 4, "caption_channels": [8, 6], "text_emb_dim": 8,
         "num_routed_experts": 2, "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2), "max_resolution": (16, 16),
         "llama_layers": (0, 1, 2), "force_inference_output": True},
        _hidream,
    ),
}  # fmt: skip

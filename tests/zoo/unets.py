"""UNets and priors beside Stable Diffusion's own."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.specimen import Specimen, noise


def _cascade() -> dict[str, Any]:
    return {
        "sample": noise(1, 4, 8, 8), "timestep_ratio": torch.tensor([0.5]), "clip_text_pooled": noise(1, 1, 20),
        "clip_text": noise(1, 5, 20), "clip_img": noise(1, 1, 24),
    }  # fmt: skip


def _dreamlite() -> dict[str, Any]:
    return {"sample": noise(1, 4, 8, 8), "timestep": torch.tensor(500), "encoder_hidden_states": noise(1, 5, 24)}


def _kandinsky3() -> dict[str, Any]:
    return {
        **_dreamlite(), "encoder_hidden_states": noise(1, 5, 20), "encoder_attention_mask": torch.ones(1, 5),
    }  # fmt: skip


def _kandinsky22() -> dict[str, Any]:
    return {
        "sample": noise(1, 4, 8, 8), "timestep": torch.tensor(500), "encoder_hidden_states": None,
        "added_cond_kwargs": {"image_embeds": noise(1, 20)},
    }  # fmt: skip


def _prior() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 20), "timestep": torch.tensor([500]), "proj_embedding": noise(1, 20),
        "encoder_hidden_states": noise(1, 5, 20), "attention_mask": torch.ones(1, 5, dtype=torch.bool),
    }  # fmt: skip


def _wuerstchen() -> dict[str, Any]:
    return {"x": noise(1, 4, 8, 8), "r": torch.tensor([0.5]), "c": noise(1, 5, 20)}


def _conditioner() -> dict[str, Any]:
    return {"source_hidden_states": noise(1, 5, 20), "target_input_ids": torch.arange(6)[None]}


def _connectors() -> dict[str, Any]:
    return {"text_encoder_hidden_states": noise(1, 8, 12, 3), "attention_mask": torch.ones(1, 8)}


UNETS = {
    "stable_cascade": Specimen(
        "StableCascadeUNet",
        {"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 16, "conditioning_dim": 24,
         "block_out_channels": (24, 32), "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 1),
         "up_num_layers_per_block": (1, 1), "switch_level": (False,), "clip_image_in_channels": 24,
         "clip_text_in_channels": 20, "clip_text_pooled_in_channels": 20, "clip_seq": 2, "dropout": (0.0, 0.0)},
        _cascade, "prior",
    ),
    "dreamlite": Specimen(
        "DreamLiteUNetModel",
        {"sample_size": 8,
         "down_block_types": ("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
         "up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"), "block_out_channels": (16, 32),
         "cross_attention_dim": 24, "attention_head_dim": 8, "layers_per_block": 1, "norm_num_groups": 8},
        _dreamlite, "unet",
    ),
    "kandinsky3": Specimen(
        "Kandinsky3UNet",
        {"in_channels": 4, "time_embedding_dim": 8, "groups": 4, "attention_head_dim": 8, "layers_per_block": 2,
         "block_out_channels": (16, 32), "cross_attention_dim": 24, "encoder_hid_dim": 20},
        _kandinsky3, "unet",
    ),
    "kandinsky22": Specimen(
        "UNet2DConditionModel",
        {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8, "attention_head_dim": 8,
         "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
         "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
         "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "cross_attention_dim": 24,
         "encoder_hid_dim": 20, "encoder_hid_dim_type": "image_proj", "addition_embed_type": "image",
         "resnet_time_scale_shift": "scale_shift"},
        _kandinsky22, "unet",
    ),
    "kandinsky22_prior": Specimen(
        "PriorTransformer",
        {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "embedding_dim": 20, "num_embeddings": 5,
         "additional_embeddings": 4},
        _prior, "prior",
    ),
    "wuerstchen2": Specimen(
        "pipelines.deprecated.wuerstchen.WuerstchenPrior",
        {"c_in": 4, "c": 24, "c_cond": 20, "c_r": 8, "depth": 2, "nhead": 2},
        _wuerstchen, "prior",
    ),
    "anima_conditioner": Specimen(
        "AnimaTextConditioner",
        {"source_dim": 20, "target_dim": 24, "model_dim": 24, "num_layers": 2, "num_attention_heads": 3,
         "target_vocab_size": 30, "min_sequence_length": 8},
        _conditioner, "text_conditioner",
    ),
    "ltx2_connectors": Specimen(
        "pipelines.ltx2.LTX2TextConnectors",
        {"caption_channels": 12, "text_proj_in_factor": 3, "video_connector_num_attention_heads": 2,
         "video_connector_attention_head_dim": 6, "video_connector_num_layers": 1,
         "video_connector_num_learnable_registers": 8, "audio_connector_num_attention_heads": 2,
         "audio_connector_attention_head_dim": 6, "audio_connector_num_layers": 1,
         "audio_connector_num_learnable_registers": 8, "connector_rope_base_seq_len": 16,
         "rope_double_precision": False, "video_hidden_dim": 16, "audio_hidden_dim": 8},
        _connectors, "connectors",
    ),
}  # fmt: skip

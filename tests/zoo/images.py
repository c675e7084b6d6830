"""Image models that are built in ways of their own."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.specimen import Specimen, noise


def grid(channels: int = 4, side: int = 8, width: int = 32, length: int = 5, **others: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, channels, side, side), "encoder_hidden_states": noise(1, length, width),
        "timestep": torch.tensor([500.0]), **others,
    }  # fmt: skip


SD3: dict[str, Any] = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 24, "pooled_projection_dim": 20,
    "out_channels": 4, "pos_embed_max_size": 8,
}  # fmt: skip


def _sd3() -> dict[str, Any]:
    return grid(width=24, pooled_projections=noise(1, 20))


def _hunyuandit() -> dict[str, Any]:
    return grid(
        width=12, length=4, text_embedding_mask=torch.ones(1, 4), encoder_hidden_states_t5=noise(1, 4, 24),
        text_embedding_mask_t5=torch.ones(1, 4), image_meta_size=torch.full((1, 6), 16.0),
        style=torch.zeros(1, dtype=torch.long), image_rotary_emb=[torch.ones(16, 8), torch.zeros(16, 8)],
    )  # fmt: skip


def _pixart() -> dict[str, Any]:
    return grid(width=20, added_cond_kwargs={"resolution": None, "aspect_ratio": None})


def _pixart_alpha() -> dict[str, Any]:
    known = {"resolution": torch.tensor([[8.0, 8.0]]), "aspect_ratio": torch.tensor([[1.0]])}
    return grid(width=20, added_cond_kwargs=known)


def _cogview() -> dict[str, Any]:
    return grid(original_size=torch.tensor([[64, 64]]), target_size=torch.tensor([[64, 64]]),
                crop_coords=torch.tensor([[0, 0]]))  # fmt: skip


def _glm() -> dict[str, Any]:
    return grid(
        prior_token_id=torch.randint(0, 64, (1, 16)), prior_token_drop=torch.zeros(1, dtype=torch.bool),
        target_size=torch.tensor([[8.0, 8.0]]), crop_coords=torch.tensor([[0.0, 0.0]]),
    )  # fmt: skip


def _omnigen() -> dict[str, Any]:
    length = 6 + 1 + 16
    return {
        "hidden_states": noise(1, 4, 8, 8), "timestep": torch.tensor([0.5]), "input_ids": torch.arange(6)[None],
        "input_img_latents": [noise(1, 4, 4, 4)], "input_image_sizes": {0: [[1, 5]]},
        "attention_mask": torch.ones(1, length, length), "position_ids": torch.arange(length)[None],
    }  # fmt: skip


def _zimage() -> dict[str, Any]:
    return {"x": [noise(4, 1, 8, 8)], "cap_feats": [noise(6, 20)], "t": torch.tensor([0.5])}


def _krea2() -> dict[str, Any]:
    places = torch.zeros(8, 3)
    places[4:, 1], places[4:, 2] = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    return {
        "hidden_states": noise(1, 4, 16), "encoder_hidden_states": noise(1, 4, 3, 24), "position_ids": places,
        "timestep": torch.tensor([0.5]), "encoder_attention_mask": torch.ones(1, 4, dtype=torch.bool),
    }  # fmt: skip


def _ideogram4() -> dict[str, Any]:
    from diffusers.models.transformers import transformer_ideogram4 as ideogram

    hidden, text = torch.zeros(1, 8, 16), torch.zeros(1, 8, 24)
    hidden[:, 4:], text[:, :4] = noise(1, 4, 16), noise(1, 4, 24)
    places = torch.arange(8)[None, :, None].repeat(1, 1, 3)
    places[:, 4:] = ideogram.IMAGE_POSITION_OFFSET + torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]])
    kinds = torch.full((1, 8), ideogram.LLM_TOKEN_INDICATOR)
    kinds[:, 4:] = ideogram.OUTPUT_IMAGE_INDICATOR
    return {
        "hidden_states": hidden, "encoder_hidden_states": text, "timestep": torch.tensor([0.5]),
        "position_ids": places, "segment_ids": torch.ones(1, 8, dtype=torch.long), "indicator": kinds,
    }  # fmt: skip


def _fibo2() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 4, 8, 8), "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": noise(1, 2, 6, 20), "context_latents": [noise(1, 4, 4, 4)],
    }  # fmt: skip


def _ernie() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 16, 4, 4), "timestep": torch.tensor([0.5]), "text_bth": noise(1, 5, 20),
        "text_lens": torch.tensor([5]),
    }  # fmt: skip


SANA: dict[str, Any] = {
    "patch_size": 1, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 3, "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24,
    "caption_channels": 20, "sample_size": 8,
}  # fmt: skip
PIXART: dict[str, Any] = {
    "sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3,
    "in_channels": 4, "cross_attention_dim": 24, "out_channels": 8, "norm_num_groups": 8, "caption_channels": 20,
}  # fmt: skip

IMAGES = {
    "sd3_medium": Specimen("SD3Transformer2DModel", SD3, _sd3),
    "sd35_medium": Specimen(
        "SD3Transformer2DModel", {**SD3, "dual_attention_layers": (0,), "qk_norm": "rms_norm"}, _sd3
    ),
    "auraflow": Specimen(
        "AuraFlowTransformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_mmdit_layers": 2, "num_single_dit_layers": 2,
         "attention_head_dim": 8, "num_attention_heads": 4, "caption_projection_dim": 32, "joint_attention_dim": 24,
         "out_channels": 4, "pos_embed_max_size": 16},
        lambda: grid(width=24),
    ),
    "hunyuandit": Specimen(
        "HunyuanDiT2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 4, "attention_head_dim": 8,
         "num_attention_heads": 2, "cross_attention_dim": 12, "cross_attention_dim_t5": 24, "pooled_projection_dim": 4,
         "hidden_size": 16, "text_len": 4, "text_len_t5": 4},
        _hunyuandit,
    ),
    "pixart_sigma": Specimen(
        "PixArtTransformer2DModel", {**PIXART, "use_additional_conditions": False}, _pixart,
    ),
    "pixart_alpha": Specimen(
        "PixArtTransformer2DModel", {**PIXART, "use_additional_conditions": True}, _pixart_alpha
    ),
    "sana": Specimen("SanaTransformer2DModel", SANA, lambda: grid(width=20)),
    "sana_sprint": Specimen(
        "SanaTransformer2DModel", {**SANA, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
        lambda: grid(width=20, guidance=torch.tensor([4.5])),
    ),
    "lumina2": Specimen(
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 24, "num_layers": 2,
         "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 2,
         "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 32, 32), "cap_feat_dim": 20},
        lambda: grid(width=20, encoder_attention_mask=torch.ones(1, 5, dtype=torch.bool)),
    ),
    "cogview4": Specimen(
        "CogView4Transformer2DModel",
        {"patch_size": 2, "in_channels": 4, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 3,
         "out_channels": 4, "text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 4, "rope_axes_dim": (16, 16)},
        _cogview,
    ),
    "glm_image": Specimen(
        "GlmImageTransformer2DModel",
        {"patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
         "num_attention_heads": 3, "text_embed_dim": 32, "time_embed_dim": 16, "condition_dim": 8,
         "prior_vq_quantizer_codebook_size": 64},
        _glm,
    ),
    "omnigen": Specimen(
        "OmniGenTransformer2DModel",
        {"in_channels": 4, "hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 4,
         "intermediate_size": 32, "num_layers": 2, "pad_token_id": 0, "vocab_size": 30, "time_step_dim": 8,
         "rope_scaling": {"long_factor": [1.0, 2.0, 3.0], "short_factor": [1.0, 2.0, 3.0]}},
        _omnigen,
    ),
    "zimage": Specimen(
        "ZImageTransformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 20, "axes_dims": [8, 4, 4], "axes_lens": [64, 16, 16]},
        _zimage,
    ),
    "krea2": Specimen(
        "Krea2Transformer2DModel",
        {"in_channels": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 40, "timestep_embed_dim": 8, "text_hidden_dim": 24,
         "num_text_layers": 3, "text_num_attention_heads": 3, "text_num_key_value_heads": 1,
         "text_intermediate_size": 20, "num_layerwise_text_blocks": 1, "num_refiner_text_blocks": 1,
         "axes_dims_rope": (4, 2, 2)},
        _krea2,
    ),
    "ideogram4": Specimen(
        "Ideogram4Transformer2DModel",
        {"in_channels": 16, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 4,
         "intermediate_size": 40, "adaln_dim": 12, "llm_features_dim": 24, "rope_theta": 10000,
         "mrope_section": (2, 1, 1)},
        _ideogram4,
    ),
    "bria_fibo2": Specimen(
        "BriaFibo2Transformer2DModel",
        {"in_channels": 4, "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": 20,
         "injection_layer_ids": (1,), "perceiver_num_layers": 1, "min_num_gist_tokens": 4, "max_num_gist_tokens": 8,
         "gist_step": 4, "gist_min_text_len": 4, "gist_max_text_len": 16, "axes_dims": (8, 4, 4),
         "axes_lens": (64, 16, 16)},
        _fibo2,
    ),
    "ernie": Specimen(
        "ErnieImageTransformer2DModel",
        {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 2, "ffn_hidden_size": 40, "in_channels": 16,
         "out_channels": 16, "text_in_dim": 20, "rope_axes_dim": (8, 4, 4)},
        _ernie,
    ),
    "prx": Specimen(
        "PRXTransformer2DModel",
        {"in_channels": 4, "patch_size": 2, "context_in_dim": 20, "hidden_size": 32, "num_heads": 2, "depth": 2,
         "axes_dim": [8, 8]},
        lambda: grid(width=20),
    ),
    "prx_pixel": Specimen(
        "PRXTransformer2DModel",
        {"in_channels": 3, "patch_size": 4, "context_in_dim": 20, "hidden_size": 32, "num_heads": 2, "depth": 2,
         "axes_dim": [8, 8], "bottleneck_size": 12, "resolution_embeds": True},
        lambda: grid(channels=3, width=20),
    ),
}  # fmt: skip

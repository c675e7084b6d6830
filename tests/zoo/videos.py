"""Video models, and the image models that are built as they are."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.specimen import Specimen, noise


def frames(channels: int = 4, count: int = 2, width: int = 20, **others: Any) -> dict[str, Any]:
    return {
        "hidden_states": noise(1, channels, count, 4, 4), "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": noise(1, 5, width), **others,
    }  # fmt: skip


WAN: dict[str, Any] = {
    "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 20,
    "freq_dim": 16, "ffn_dim": 40, "num_layers": 2, "rope_max_seq_len": 16,
}  # fmt: skip


def _wan_image() -> dict[str, Any]:
    # The class takes the last 512 tokens for text, and those before them for the image.
    return frames(encoder_hidden_states_image=noise(1, 3, 12), encoder_hidden_states=noise(1, 512, 20))


def _vace() -> dict[str, Any]:
    return frames(control_hidden_states=noise(1, 6, 2, 4, 4))


def _animate() -> dict[str, Any]:
    return {
        **frames(channels=12, count=21), "hidden_states": noise(1, 12, 21, 4, 4),
        "encoder_hidden_states_image": noise(1, 3, 12), "pose_hidden_states": noise(1, 4, 20, 4, 4),
        "face_pixel_values": noise(1, 3, 77, 16, 16),
    }  # fmt: skip


HUNYUAN: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2,
    "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 20, "rope_axes_dim": (2, 4, 4),
}  # fmt: skip
MASK = torch.ones(1, 5)


def _hunyuan() -> dict[str, Any]:
    return frames(
        pooled_projections=noise(1, 8), guidance=torch.tensor([6.0]), encoder_attention_mask=MASK,
        timestep=torch.tensor([500]),
    )  # fmt: skip


def _framepack() -> dict[str, Any]:
    return {
        **_hunyuan(), "image_embeds": noise(1, 3, 12), "indices_latents": torch.arange(2.0),
        "latents_clean": noise(1, 4, 1, 4, 4), "indices_latents_clean": torch.arange(1.0),
        "latents_history_2x": noise(1, 4, 2, 4, 4), "indices_latents_history_2x": torch.arange(2.0),
        "latents_history_4x": noise(1, 4, 4, 8, 8), "indices_latents_history_4x": torch.arange(4.0),
    }  # fmt: skip


def _hunyuan15() -> dict[str, Any]:
    return frames(
        encoder_attention_mask=MASK, encoder_hidden_states_2=noise(1, 3, 12), encoder_attention_mask_2=torch.ones(1, 3),
        image_embeds=noise(1, 3, 14),
    )  # fmt: skip


def _hunyuan_image() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 4, 4, 4), "timestep": torch.tensor([500.0]), "encoder_attention_mask": MASK,
        "encoder_hidden_states": noise(1, 5, 20), "encoder_hidden_states_2": noise(1, 3, 12),
        "encoder_attention_mask_2": torch.ones(1, 3),
    }  # fmt: skip


def _refiner() -> dict[str, Any]:
    return frames(encoder_attention_mask=MASK, guidance=torch.tensor([6.0]))


def _cosmos() -> dict[str, Any]:
    return frames(count=1, fps=30)


def _ltx() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 18, 4), "encoder_hidden_states": noise(1, 5, 20), "timestep": torch.tensor([500]),
        "encoder_attention_mask": MASK.bool(), "num_frames": 2, "height": 3, "width": 3,
    }  # fmt: skip


def _ltx2() -> dict[str, Any]:
    return {
        **_ltx(), "audio_hidden_states": noise(1, 7, 4), "audio_encoder_hidden_states": noise(1, 5, 20),
        "timestep": torch.tensor([500.0]), "audio_num_frames": 7, "fps": 25.0,
    }  # fmt: skip


def _kandinsky5() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 1, 4, 4, 4), "encoder_hidden_states": noise(1, 5, 20),
        "timestep": torch.tensor([500.0]), "pooled_projections": noise(1, 12),
        "visual_rope_pos": [torch.arange(1), torch.arange(2), torch.arange(2)], "text_rope_pos": torch.arange(5),
    }  # fmt: skip


def _kandinsky6() -> dict[str, Any]:
    return {
        "hidden_states": noise(1, 2, 4, 4, 9), "encoder_hidden_states": noise(1, 5, 20),
        "pooled_projections": noise(1, 12), "timestep": torch.tensor([500.0]), "audio_hidden_states": noise(1, 6, 5),
    }  # fmt: skip


COSMOS: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
    "mlp_ratio": 2, "text_embed_dim": 20, "adaln_lora_dim": 4, "max_size": (4, 16, 16), "extra_pos_embed_type": None,
    "concat_padding_mask": False,  # resizing the mask takes torchvision; all it adds is one input channel
}  # fmt: skip
LTX: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
    "num_layers": 2, "caption_channels": 20,
}  # fmt: skip

VIDEOS = {
    "wan": Specimen("WanTransformer3DModel", WAN, frames),
    "wan21_i2v": Specimen(
        "WanTransformer3DModel", {**WAN, "image_dim": 12, "added_kv_proj_dim": 24}, _wan_image,
    ),
    "wan21_vace": Specimen(
        "WanVACETransformer3DModel", {**WAN, "vace_layers": [0, 1], "vace_in_channels": 6}, _vace,
    ),
    "wan22_animate": Specimen(
        "WanAnimateTransformer3DModel",
        {**WAN, "in_channels": 12, "latent_channels": 4, "image_dim": 12, "rope_max_seq_len": 32,
         "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16,
         "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16,
         "face_encoder_num_heads": 2, "inject_face_latents_blocks": 2},
        _animate,
    ),
    "hunyuan_video": Specimen(
        "HunyuanVideoTransformer3DModel",
        {**HUNYUAN, "patch_size": 1, "patch_size_t": 1, "pooled_projection_dim": 8, "guidance_embeds": True},
        _hunyuan,
    ),
    "framepack": Specimen(
        "HunyuanVideoFramepackTransformer3DModel",
        {**HUNYUAN, "pooled_projection_dim": 8, "has_image_proj": True, "image_proj_dim": 12,
         "has_clean_x_embedder": True},
        _framepack,
    ),
    "hunyuan_video_15": Specimen(
        "HunyuanVideo15Transformer3DModel",
        {**{k: v for k, v in HUNYUAN.items() if k != "num_single_layers"}, "text_embed_2_dim": 12,
         "image_embed_dim": 14, "target_size": 16, "task_type": "t2v"},
        _hunyuan15,
    ),
    "hunyuan_image_21": Specimen(
        "HunyuanImageTransformer2DModel", {**HUNYUAN, "text_embed_2_dim": 12, "rope_axes_dim": (4, 6)}, _hunyuan_image,
    ),
    "hunyuan_image_refiner": Specimen(
        "HunyuanImageTransformer2DModel", {**HUNYUAN, "patch_size": (1, 1, 1), "guidance_embeds": True}, _refiner,
    ),
    "cosmos": Specimen("CosmosTransformer3DModel", COSMOS, _cosmos),
    "ltx": Specimen("LTXVideoTransformer3DModel", LTX, _ltx),
    "ltx2": Specimen(
        "LTX2VideoTransformer3DModel",
        {**LTX, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
         "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "rope_double_precision": False},
        _ltx2,
    ),
    "joyimage": Specimen(
        "JoyImageEditTransformer3DModel",
        {"in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 20, "num_layers": 2,
         "rope_dim_list": [4, 6, 6]},
        lambda: frames(count=1),
    ),
    "kandinsky5": Specimen(
        "Kandinsky5Transformer3DModel",
        {"in_visual_dim": 4, "in_text_dim": 20, "in_text_dim2": 12, "time_dim": 16, "out_visual_dim": 4,
         "model_dim": 32, "ff_dim": 40, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6)},
        _kandinsky5,
    ),
    "kandinsky6": Specimen(
        "Kandinsky6Transformer3DModel",
        {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 20, "in_text_dim2": 12, "time_dim": 16,
         "model_dim": 32, "ff_dim": 40, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 6, 6),
         "in_audio_dim": 5, "out_audio_dim": 5},
        _kandinsky6,
    ),
}  # fmt: skip

"""The networks of both pipelines, untrained, and their tokenizer: Diffusers' and Transformers' own classes, small."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from .scene import COLOURS, COUNTS, PIXELS, POSITIONS, RADII, SHAPES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline

LATENT_CHANNELS = 4
"""A picture of 64 x 64 pixels is 4 x 16 x 16 latent numbers."""

TOKENS = 16
"""The longest prompt, with its two ends; captions have 13 tokens at most."""

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = [
    *("a", "an", "at", "the", "on", "background", *SHAPES, *(shape + "s" for shape in SHAPES), "crosses"),
    *(word for word in (*COLOURS, *POSITIONS, *RADII, *COUNTS) if word),
]
"""The words of captions."""


def autoencoder(seed: int = 0) -> AutoencoderKL:
    """The autoencoder of both pipelines: four pixels to a latent, convolutions only.

    Its norms have one group: several would take from flat pictures what tells their colours apart.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(16, 32, 64), layers_per_block=1, norm_num_groups=1, latent_channels=LATENT_CHANNELS,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, sample_size=PIXELS,
        mid_block_add_attention=False, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.0,
    ).to(memory_format=torch.channels_last)  # fmt: skip


def tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer to which every word of a caption is one token, and any other word its letters."""
    pairs = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=2000, initial_alphabet=list(LETTERS), end_of_word_suffix="</w>", show_progress=False,
        special_tokens=[BEGIN, END],
    )  # fmt: skip
    pairs.train_from_iterator([" ".join(WORDS)] * 2 + [" ".join(LETTERS)], trainer)
    state = json.loads(pairs.to_str())["model"]
    return CLIPTokenizer(state["vocab"], [tuple(pair) for pair in state["merges"]], model_max_length=TOKENS)


def t5_tokenizer() -> T5TokenizerFast:
    """A T5 tokenizer with the same words and letters."""
    pieces = ["<pad>", "</s>", "<unk>", "▁", *("▁" + word for word in WORDS), *LETTERS]
    scores = [0.0 if piece.startswith("<") else -1.0 if len(piece) > 2 else -5.0 for piece in dict.fromkeys(pieces)]
    return T5TokenizerFast(
        list(zip(dict.fromkeys(pieces), scores, strict=True)), extra_ids=0, model_max_length=TOKENS,
        additional_special_tokens=[],
    )  # fmt: skip


def text_config(words: CLIPTokenizer, layers: int) -> CLIPTextConfig:
    """The shape of a text encoder."""
    return CLIPTextConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=192, num_hidden_layers=layers, num_attention_heads=4,
        max_position_embeddings=TOKENS, projection_dim=64, bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip


def unet_pipeline(vae: AutoencoderKL, seed: int = 0) -> StableDiffusionPipeline:
    """Shapes-UNet, untrained but for its autoencoder: predicts velocity, from pure noise (zero terminal SNR)."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    torch.manual_seed(seed)
    words = tokenizer()
    unet = UNet2DConditionModel(
        block_out_channels=(48, 64, 80), layers_per_block=1, sample_size=16, in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS, down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * 2),
        up_block_types=(*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), norm_num_groups=16, cross_attention_dim=64,
        attention_head_dim=4,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text_config(words, layers=2)), tokenizer=words, unet=unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def dit_pipeline(vae: AutoencoderKL, seed: int = 0) -> StableDiffusion3Pipeline:
    """Shapes-DiT, untrained but for its autoencoder: Stable Diffusion 3 with its three text encoders."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(seed)
    words = tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, num_layers=4,
        attention_head_dim=32, num_attention_heads=4, joint_attention_dim=128, caption_projection_dim=128,
        pooled_projection_dim=128, pos_embed_max_size=16, qk_norm="rms_norm",
    )  # fmt: skip
    encoders = [CLIPTextModelWithProjection(text_config(words, layers=3)) for _ in range(2)]
    pieces = t5_tokenizer()
    t5 = T5Config(
        vocab_size=len(pieces), d_model=128, d_kv=32, d_ff=192, num_layers=1, num_heads=4, pad_token_id=0,
        eos_token_id=1, dropout_rate=0.0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0), vae=vae,
        text_encoder=encoders[0], tokenizer=words, text_encoder_2=encoders[1], tokenizer_2=words,
        text_encoder_3=T5EncoderModel(t5), tokenizer_3=pieces,
    )  # fmt: skip

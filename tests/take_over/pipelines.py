"""Tiny whole pipelines, from prompt to latents, and LoRA state dicts that PEFT makes for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers import UNet2DConditionModel as UNet
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WIDTH = 32
UNET_MODULES = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_MODULES = ("q_proj", "k_proj", "v_proj", "out_proj")
FEW = (0, -1)
"""Which of these are adapted unless all are asked for: PEFT's time goes by the number of layers."""


def tokenizer() -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)


def text_encoder(seed: int, tokens: CLIPTokenizer, cls: type[nn.Module] = CLIPTextModel) -> nn.Module:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=37, num_attention_heads=4, num_hidden_layers=3, vocab_size=len(tokens),
        projection_dim=WIDTH, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
    )  # fmt: skip
    return cls(config).eval()


def unet(seed: int, **options: Any) -> UNet:
    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64), "layers_per_block": 2, "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "norm_num_groups": 8,
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": WIDTH,
    }  # fmt: skip
    return UNet(**settings | options).eval()


def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=[32, 64], down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, latent_channels=4, norm_num_groups=8,
    ).eval()  # fmt: skip


def sd() -> StableDiffusionPipeline:
    tokens = tokenizer()
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=text_encoder(0, tokens), tokenizer=tokens, unet=unet(0),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    tokens = tokenizer()
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=text_encoder(0, tokens), tokenizer=tokens, tokenizer_2=tokens,
        text_encoder_2=text_encoder(1, tokens, CLIPTextModelWithProjection),
        unet=unet(
            0, cross_attention_dim=2 * WIDTH, attention_head_dim=(2, 4), use_linear_projection=True,
            transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), add_watermarker=False,
    )  # fmt: skip


_MADE: dict[str, dict[str, Tensor]] = {}


def lora(
    pipe: Any, seed: int, *, unet: bool = True, text: bool = True, whole: bool = False, **options: Any
) -> dict[str, Tensor]:
    """A LoRA's state dict, as `save_lora_weights` writes it. whole: of all attention layers. options: of `LoraConfig`.

    PEFT takes a second for one, so that it makes one of a kind: all pipelines of a class are alike here. Another seed
    changes its numbers.
    """
    parts = [
        name for name in pipe.components if (text and name.startswith("text_encoder")) or (unet and name == "unet")
    ]
    key = repr((type(pipe).__name__, whole, sorted(options.items()), parts if options else None))
    if key not in _MADE:
        every = [name for name in pipe.components if name == "unet" or name.startswith("text_encoder")]
        _MADE[key] = _lora(pipe, parts if options else every, whole, options)
    state = {name: tensor for name, tensor in _MADE[key].items() if name.partition(".")[0] in parts}
    return {name: _redrawn(tensor, seed) if seed > 1 else tensor.clone() for name, tensor in state.items()}


def _redrawn(tensor: Tensor, seed: int) -> Tensor:
    """Other numbers of the same size; of a vector the numbers stay."""
    if tensor.ndim < 2:
        return tensor.clone()
    g = torch.Generator().manual_seed(1000 * seed + tensor.numel())
    return (2 * torch.rand(tensor.shape, generator=g) - 1) * tensor.abs().max()


def _lora(pipe: Any, parts: list[str], whole: bool, options: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    state: dict[str, Tensor] = {}
    for name in parts:
        model = copy.deepcopy(pipe.components[name])
        modules = UNET_MODULES if name == "unet" else TEXT_MODULES
        chosen = list(modules) if whole else [modules[index] for index in FEW]
        config = {"r": 4, "lora_alpha": 4, "target_modules": chosen, "init_lora_weights": False} | options
        inject_adapter_in_model(LoraConfig(**config), model, "x")
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_magnitude_vector" in key:
                    parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
        found = get_peft_model_state_dict(model, adapter_name="x")
        state |= {f"{name}.{key}": tensor.clone() for key, tensor in found.items()}
    return state


def run(pipe: Any, **options: Any) -> Tensor:
    """The latents that a pipeline makes of a prompt."""
    pipe.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "latent"} | options
    return pipe("a squirrel", generator=torch.manual_seed(0), **settings)[0].detach().clone()

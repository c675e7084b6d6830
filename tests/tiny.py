"""Tiny pipelines with the real classes, and adapter files that real trainers wrote for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

WIDTH = 32

LYCORIS = {
    "lora": ("lora", {}),
    "lora_tucker": ("lora", {"use_tucker": True}),
    "dora": ("lora", {"dora_wd": True, "wd_on_out": True}),
    "dora_in": ("lora", {"dora_wd": True, "wd_on_out": False}),
    "loha": ("loha", {}),
    "loha_dora": ("loha", {"dora_wd": True}),
    "lokr": ("lokr", {"factor": 4}),
    "lokr_full": ("lokr", {"factor": 4, "full_matrix": True}),
    "lokr_dora": ("lokr", {"factor": 4, "dora_wd": True}),
    "oft": ("diag-oft", {}),
    "oft_rescaled": ("diag-oft", {"rescaled": True}),
    "boft": ("boft", {}),
    "boft_rescaled": ("boft", {"rescaled": True}),
    "glora": ("glora", {}),
    "full": ("full", {}),
    "ia3": ("ia3", {}),
}
"""LyCORIS variants by our name: (algo, options)."""

FEW = "mid_block_(resnets_0|attentions_0_proj_in|attentions_0_transformer_blocks_0_attn2)|attn1_to_q"
"""Modules of `write_lycoris`: a few in every block, and in the middle one of each kind."""


def unet(seed: int = 0, **options) -> UNet2DConditionModel:
    """An SD-like UNet with every kind of module that adapters meet, in a few thousand parameters."""
    torch.manual_seed(seed)
    settings = {
        "block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 8, "in_channels": 4, "out_channels": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "cross_attention_dim": WIDTH, "norm_num_groups": 8,
    }  # fmt: skip
    return UNet2DConditionModel(**{**settings, **options}).eval()


def text_encoder(seed: int = 0, cls: type[nn.Module] = CLIPTextModel) -> nn.Module:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2, vocab_size=100,
        projection_dim=WIDTH, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    return cls(config).eval()


def sd(seed: int = 0, **options) -> StableDiffusionPipeline:
    """Stable Diffusion without a VAE or tokenizer: its UNet and text encoder."""
    return StableDiffusionPipeline(
        vae=None, text_encoder=text_encoder(seed), tokenizer=None, unet=unet(seed, **options),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def sdxl(seed: int = 0) -> StableDiffusionXLPipeline:
    """SDXL's shape: two text encoders, linear projections."""
    return StableDiffusionXLPipeline(
        vae=None, text_encoder=text_encoder(seed), text_encoder_2=text_encoder(seed + 1, CLIPTextModelWithProjection),
        tokenizer=None, tokenizer_2=None,
        unet=unet(
            seed, use_linear_projection=True, transformer_layers_per_block=(1, 2), addition_embed_type="text_time",
            addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), add_watermarker=False,
    )  # fmt: skip


def inputs(dtype: torch.dtype = torch.float32, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """(latents, timestep, text states) for `unet`."""
    g = torch.Generator().manual_seed(1)
    latents = torch.randn(batch, 4, 8, 8, generator=g)
    return latents.to(dtype), torch.tensor([3]), torch.randn(batch, 5, WIDTH, generator=g).to(dtype)


@torch.no_grad()
def run(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """The UNet's output on `inputs`."""
    return model(*inputs(dtype)).sample


def write_lycoris(model: nn.Module, name: str, path: Path, seed: int = 7) -> Tensor:
    """Write a LyCORIS file with random, non-degenerate tensors; returns the output of the trainer's own forward."""
    from lycoris import LycorisNetwork, create_lycoris

    algo, options = LYCORIS[name]
    LycorisNetwork.apply_preset({"target_module": ["Attention", "Transformer2DModel", "ResnetBlock2D"]})
    LycorisNetwork.LORA_PREFIX = "lora_unet"
    net = create_lycoris(model, 1.0, linear_dim=4, linear_alpha=2, algo=algo, **options)
    net.apply_to()
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in net.named_parameters():
            if "dora" in key or "rescale" in key:
                parameter.mul_(1 + 0.3 * torch.rand_like(parameter))
            elif algo == "full" and parameter.numel() > 1:
                parameter.add_(0.1 * parameter.std() * torch.randn_like(parameter))
            elif algo != "full":
                # A LoHa multiplies four factors: small ones would drown its change in the rounding of the output.
                parameter.normal_(0, 0.4 if algo == "loha" else 0.1)
        truth = run(model)
        tensors = {k: v.detach().clone().contiguous() for k, v in net.state_dict().items()}
    net.restore()
    save_file(tensors, path)
    return truth


def thinned(path: Path, kept: str = FEW) -> dict[str, Tensor]:
    """The part of a file whose keys have a match: a compiler takes a second and more for every adapted layer."""
    return {key: tensor for key, tensor in load_file(path).items() if re.search(kept, key)}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def same_bits(model: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether the model's state dict has the same keys, in the same order, and the very same bits."""
    now = model.state_dict()
    return list(now) == list(before) and all(
        now[k].dtype == v.dtype and torch.equal(now[k].view(torch.uint8), v.view(torch.uint8))
        for k, v in before.items()
    )


def relative(seen: Tensor, truth: Tensor, base: Tensor) -> float:
    """The error of a change, against the size of the true change."""
    return float((seen.float() - truth.float()).norm() / (truth.float() - base.float()).norm())


def flux(seed: int = 0, **options) -> nn.Module:
    """A Flux transformer of one double and one single block, 48 wide."""
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(seed)
    settings = {
        "patch_size": 1, "in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 3, "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH,
        "axes_dims_rope": [4, 4, 8],
    }  # fmt: skip
    return FluxTransformer2DModel(**{**settings, **options}).eval()


def alone(owner: Any, run: Callable[[], Tensor], strengths: Mapping[str, Any]) -> Tensor:
    """What a run gives with these adapters and no others."""
    owner.adapters.set(strengths)
    return run()

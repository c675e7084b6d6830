"""A full-size SDXL UNet filled cheaply, and Kohya LoRA files of rank 32 for its 722 attention and projection layers."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.utils.logging import set_verbosity_error
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.timing import DEVICE

RANK = 32
set_verbosity_error()


def blank() -> UNet2DConditionModel:
    """The modules without memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            sample_size=128, in_channels=4, out_channels=4, block_out_channels=(320, 640, 1280), layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10], attention_head_dim=[5, 10, 20], cross_attention_dim=2048,
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )  # fmt: skip


def unet(dtype: torch.dtype = torch.bfloat16) -> UNet2DConditionModel:
    """2.57 G parameters, filled with one run of small random numbers again and again."""
    model = blank().to(dtype).to_empty(device=DEVICE)
    generator = torch.Generator().manual_seed(0)
    numbers = (0.02 * torch.randn(1 << 22, generator=generator)).to(DEVICE, dtype)
    for parameter in model.parameters():
        for part in parameter.data.view(-1).split(numbers.numel()):
            part.copy_(numbers[: part.numel()])
    return model.requires_grad_(False).eval()


def pipeline(model: UNet2DConditionModel) -> StableDiffusionXLPipeline:
    """A pipeline that holds nothing but the UNet."""
    return StableDiffusionXLPipeline(
        vae=None, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=model,
        scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def targets(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers that Kohya's scripts train."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and ("transformer_blocks" in name or name.endswith(("proj_in", "proj_out")))
    }


def kohya_key(name: str) -> str:
    return "lora_unet_" + name.replace(".", "_")


def kohya_file(model: nn.Module, path: Path, seed: int = 0) -> Path:
    """A float16 LoRA file of rank 32 (171 MB) with Diffusers' module names."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for name, module in targets(model).items():
        key = kohya_key(name)
        down = torch.randn(RANK, module.in_features, generator=generator)
        up = torch.randn(module.out_features, RANK, generator=generator)
        tensors[f"{key}.lora_down.weight"] = (0.02 * down).half()
        tensors[f"{key}.lora_up.weight"] = (0.02 * up).half()
        tensors[f"{key}.alpha"] = torch.tensor(float(RANK)).half()
    save_file(tensors, path)
    return path


def step_inputs(model: UNet2DConditionModel) -> dict[str, object]:
    """Keyword arguments of one small denoising step (256 x 256 pixels)."""
    generator, dtype = torch.Generator().manual_seed(3), model.dtype
    return {
        "sample": torch.randn(1, 4, 32, 32, generator=generator).to(DEVICE, dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(1, 77, 2048, generator=generator).to(DEVICE, dtype),
        "added_cond_kwargs": {
            "text_embeds": torch.randn(1, 1280, generator=generator).to(DEVICE, dtype),
            "time_ids": torch.tensor([[256, 256, 0, 0, 256, 256]], dtype=dtype, device=DEVICE),
        },
    }

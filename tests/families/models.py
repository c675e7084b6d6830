"""The real Diffusers and transformers classes in full size on the meta device, and random files of given key shapes."""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

DOWN, CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
UP, CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
FOUR = {
    "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2,
    "down_block_types": (CROSS_DOWN,) * 3 + (DOWN,),
}  # fmt: skip
SD = {**FOUR, "up_block_types": (UP,) + (CROSS_UP,) * 3, "sample_size": 64}
XL = {
    "block_out_channels": (320, 640, 1280), "layers_per_block": 2,
    "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN), "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20], "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816, "cross_attention_dim": 2048,
}  # fmt: skip
UNETS = {
    "sd1": {**SD, "cross_attention_dim": 768},
    "sd2": {**SD, "cross_attention_dim": 1024, "use_linear_projection": True, "attention_head_dim": [5, 10, 20, 20]},
    "sdxl": {**XL, "up_block_types": (CROSS_UP, CROSS_UP, UP)},
    "sdxl_refiner": {
        **XL, "block_out_channels": (384, 768, 1536, 1536), "down_block_types": (DOWN, CROSS_DOWN, CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP, CROSS_UP, UP), "cross_attention_dim": 1280,
        "transformer_layers_per_block": [4, 4, 4, 4], "attention_head_dim": [6, 12, 24, 24],
        "projection_class_embeddings_input_dim": 2560,
    },
}  # fmt: skip
_CLIPS = {768: (3072, 12, 12), 1024: (4096, 16, 23), 1280: (5120, 20, 32)}


@cache
def unet(family: str) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**UNETS[family])


@cache
def controlnet(family: str) -> ControlNetModel:
    options = {k: v for k, v in UNETS[family].items() if k not in ("up_block_types", "sample_size")}
    with torch.device("meta"):
        return ControlNetModel(**options)


@cache
def clip(width: int) -> nn.Module:
    intermediate, heads, layers = _CLIPS[width]
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=intermediate, num_attention_heads=heads, num_hidden_layers=layers,
        projection_dim=width,
    )  # fmt: skip
    with torch.device("meta"):
        return (CLIPTextModelWithProjection if width == 1280 else CLIPTextModel)(config)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that an adapter could act on."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "weight")}


def canonical(name: str) -> str:
    """The name of a CLIP module with its `text_model.` level, whatever the version of transformers."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def random_file(shapes: dict[str, list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.rand(shape, generator=generator) + 0.1 for key, shape in shapes.items()}


def manifest(name: str) -> dict[str, list[int]]:
    """The keys and shapes of a checkpoint that a trainer wrote."""
    path = Path(__file__).parent / "manifests" / f"{name}.json.gz"
    return json.loads(gzip.decompress(path.read_bytes()))


def shaped_file(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A file of these shapes that takes no memory: every tensor is one number seen many times."""
    one = torch.ones(1)
    return {
        key: one.view((1,) * len(shape)).expand(shape) if shape else torch.tensor(1.0) for key, shape in shapes.items()
    }

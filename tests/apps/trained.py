"""What the trainer's tests share: folders of pictures, small pipelines of each kind, and short runs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image

from diffadapt import shapes
from diffadapt.apps.trainer.settings import Settings, settings_of
from tests import tiny


def pictures(folder: Path, count: int = 3) -> Path:
    """Stripes of two colours, upright or lying, with captions in the words of the embedded pipelines."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = Image.new("RGB", (64, 64), ("red", "blue", "green", "purple")[number % 4])
        for start in range(0, 64, 16):
            image.paste("yellow", (start, 0, start + 8, 64) if number % 2 else (0, start, 64, start + 8))
        image.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a red star on a {('blue', 'green')[number % 2]} background")
    return folder


def settings(folder: Path, given: Mapping[str, Any] | None = None, **changes: Any) -> Settings:
    """A short run on pictures below the folder, its results in `out` there. changes: with __ for the dot of tables."""
    base: dict[str, Any] = {
        "model": "unet", "output": str(folder / "out"), "seed": 1,
        "data": {"folder": str(pictures(folder / "pictures")), "resolution": 64},
        "adapter": {"rank": 2},
        "training": {"steps": 3, "batch": 2, "learning_rate": 2e-3},
        "checkpoints": {"every": 1000},
    }  # fmt: skip
    return settings_of({**base, **(given or {})}, {key.replace("__", "."): value for key, value in changes.items()})


@cache
def _parts() -> tuple[Any, Any]:
    return shapes.load("unet"), shapes.load("dit")


def small(name: str) -> Any:
    """A pipeline of a kind that nothing was done to. "unet" and "dit" are the embedded ones; "xl" and "flux" have their
    text encoders and a denoiser of random weights."""
    if name in shapes.PIPELINES:
        return shapes.load(name)
    unet, dit = _parts()
    if name == "xl":
        denoiser = tiny.unet(
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 64, cross_attention_dim=128, sample_size=16,
        )  # fmt: skip
        return StableDiffusionXLPipeline(
            vae=unet.vae, text_encoder=unet.text_encoder, tokenizer=unet.tokenizer, text_encoder_2=dit.text_encoder_2,
            tokenizer_2=dit.tokenizer_2, unet=denoiser, scheduler=EulerDiscreteScheduler(), add_watermarker=False,
        )  # fmt: skip
    transformer = tiny.flux(
        in_channels=16, joint_attention_dim=128, pooled_projection_dim=64, guidance_embeds=name == "flux"
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=unet.vae, transformer=transformer,
        text_encoder=unet.text_encoder, tokenizer=unet.tokenizer, text_encoder_2=dit.text_encoder_3,
        tokenizer_2=dit.tokenizer_3,
    )  # fmt: skip


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two files' tensors have the same names and bits."""
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)

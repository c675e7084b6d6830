"""Trains the two base pipelines: denoiser and text encoders together, from nothing, on captioned plain pictures."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import effort, loop, models, vae
from .draw import Style, draw, plain
from .scene import Scene, scenes

PICTURES = 8000
BATCH = 16
UNSAID = 0.1
"""Share of captions that are left empty, for classifier-free guidance."""

PLANS = {
    "unet": loop.Plan("unet", steps=3300, rate=1e-3, hidden=4e-3, warmup=100, average=0.998),
    "dit": loop.Plan("dit", steps=4000, rate=1e-3, hidden=3e-3, warmup=100, average=0.998),
}


class Pipeline(Protocol):
    """What both pipelines have that training needs."""

    vae: Any
    scheduler: Any

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]: ...


def unet_loss(pipe: Any, clean: Tensor, prompts: list[str], random: torch.Generator) -> Tensor:
    """Mean squared error of the velocity, at times normal in their logits. clean: scaled latents (n, 4, 16, 16)."""
    noise = torch.randn(clean.shape, generator=random)
    share = torch.randn(len(clean), generator=random).sigmoid()  # most of it where the shape is decided
    times = (share * pipe.scheduler.config.num_train_timesteps).long()
    text, _ = pipe.encode_prompt(prompts, clean.device, 1, False)
    made = pipe.unet(pipe.scheduler.add_noise(clean, noise, times), times, text).sample
    return functional.mse_loss(made, pipe.scheduler.get_velocity(clean, noise, times))


def dit_loss(pipe: Any, clean: Tensor, prompts: list[str], random: torch.Generator) -> Tensor:
    """Mean squared error of the flow from picture to noise, at times that are normal in their logits (SD3's paper).

    T5's text is filled up to `max_sequence_length` tokens, 256 unless told otherwise: now and then the transformer
    meets that many, so that it takes the filling for nothing.
    """
    noise = torch.randn(clean.shape, generator=random)
    sigmas = (torch.randn(len(clean), generator=random) + 0.3).sigmoid()[:, None, None, None]
    length = 256 if torch.rand(1, generator=random) < 0.03 else models.TOKENS
    text, _, pooled, _ = pipe.encode_prompt(
        prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=length
    )
    made = pipe.transformer(torch.lerp(clean, noise, sigmas), text, pooled, sigmas.flatten() * 1000).sample
    return functional.mse_loss(made, noise - clean)


LOSSES = {"unet": unet_loss, "dit": dit_loss}
BUILDERS = {"unet": models.unet_pipeline, "dit": models.dit_pipeline}


def trained_parts(pipe: Any) -> nn.ModuleDict:
    """Everything of a pipeline that has weights, but for the autoencoder."""
    return nn.ModuleDict({k: v for k, v in pipe.components.items() if isinstance(v, nn.Module) and k != "vae"})


def quick(pipe: Any) -> Any:
    """The pipeline, the channels of its UNet innermost in memory: convolutions are a tenth faster on a CPU."""
    if hasattr(pipe, "unet"):
        pipe.unet.to(memory_format=torch.channels_last)
    return pipe


def pictures(encoder: Any, count: int, seed: int, style: Style = plain) -> tuple[Tensor, list[Scene]]:
    """Scaled latents (count, 4, 16, 16) of random scenes, and the scenes."""
    found = list(islice(scenes(seed), count))
    parts = []
    for start in range(0, count, 64):
        parts.append(vae.encode(encoder, draw(found[start : start + 64], seed + start, style)))
    return torch.cat(parts) * encoder.config.scaling_factor, found


def train(name: str, folder: Path) -> Any:
    """The trained pipeline "unet" or "dit". folder: with the autoencoder, and where checkpoints go."""
    from diffusers import AutoencoderKL

    pipe = quick(BUILDERS[name](AutoencoderKL.from_pretrained(folder / "vae").requires_grad_(False)))
    clean, captions = latents(folder)
    parts = trained_parts(pipe).train()
    count = effort.some(BATCH, 8)

    def loss(step: int) -> Tensor:
        random = torch.Generator().manual_seed(10_000_000 + step)
        rows = torch.randint(0, len(clean), (count,), generator=random)
        said = (torch.rand(count, generator=random) >= UNSAID).tolist()
        prompts = [captions[row] if keep else "" for row, keep in zip(rows.tolist(), said, strict=True)]
        return LOSSES[name](pipe, clean[rows], prompts, random)

    loop.train(PLANS[name], parts, list(parts.parameters()), loss, folder)
    parts.eval()
    return pipe


def latents(folder: Path) -> tuple[Tensor, list[str]]:
    """The latents and captions of the training pictures; made once and kept in the folder."""
    from diffusers import AutoencoderKL

    file = folder / "latents.pt"
    if not file.is_file():
        encoder = AutoencoderKL.from_pretrained(folder / "vae")
        clean, found = pictures(encoder, effort.some(PICTURES, 32), seed=1)
        part = file.with_suffix(".part")
        torch.save({"latents": clean, "captions": [scene.caption for scene in found]}, part)
        part.replace(file)
    kept = torch.load(file, weights_only=True)
    return kept["latents"], kept["captions"]

"""Trains the autoencoder on pieces of plain and styled pictures, and encodes what the rest is trained on."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from . import effort, loop
from .draw import draw
from .models import autoencoder
from .scene import PIXELS, scenes
from .styles import STYLES

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

PLAN = loop.Plan("vae", steps=2600, rate=3e-3)
BATCH = 16
PIECE = 32
"""The network is made of convolutions, so that a quarter of a picture teaches as much as all of it ..."""

WHOLE = 2300
"""... but for the statistics of its norms: from this step on it sees whole pictures, a quarter as many."""

BLUR = 0.1
"""Noise on the latents, so that what a denoiser leaves of noise does not show."""


def batch(pictures: Tensor, step: int) -> Tensor:
    """Pieces of pictures, (BATCH, 3, PIECE, PIECE), or whole ones, (BATCH / 4, 3, PIXELS, PIXELS), from -1 to 1."""
    random = torch.Generator().manual_seed(1_000_000 + step)
    size, count = (PIECE, BATCH) if step < WHOLE else (PIXELS, BATCH // 4)
    rows = torch.randint(0, len(pictures), (count,), generator=random).tolist()
    corners = torch.randint(0, PIXELS - size + 1, (count, 2), generator=random).tolist()
    pieces = [pictures[row, :, y : y + size, x : x + size] for row, (y, x) in zip(rows, corners, strict=True)]
    return torch.stack(pieces) * 2 - 1


def difference(made: Tensor, wanted: Tensor) -> Tensor:
    """How far two pictures are apart: absolute difference, and that of their slopes, so that edges stay sharp."""
    slopes = [functional.l1_loss(made.diff(dim=d), wanted.diff(dim=d)) for d in (2, 3)]
    total: Tensor = functional.l1_loss(made, wanted) + functional.mse_loss(made, wanted) + slopes[0] + slopes[1]
    return total


def train(folder: Path) -> AutoencoderKL:
    """The trained autoencoder, its `scaling_factor` set so that latents have unit variance."""
    vae = autoencoder()
    found = list(islice(scenes(3), effort.some(1024, 16)))
    some = found[: len(found) // 8]
    pictures = torch.cat([draw(found, 3), *(draw(some, 4, style) for style in STYLES.values())])

    def loss(step: int) -> Tensor:
        wanted = batch(pictures, step).contiguous(memory_format=torch.channels_last)
        mean = vae.encode(wanted).latent_dist.mean
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(step))
        made: Tensor = vae.decode(mean + BLUR * noise).sample
        return difference(made, wanted) + 1e-3 * mean.square().mean()  # type: ignore[no-any-return]

    loop.train(PLAN, vae, list(vae.parameters()), loss, folder)
    vae.eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=round(1 / encode(vae, pictures[:256]).std().item(), 4))
    return vae


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """The latents of pictures from 0 to 1, (n, 4, 16, 16), not scaled."""
    parts = torch.split((pictures * 2 - 1).contiguous(memory_format=torch.channels_last), 16)
    return torch.cat([vae.encode(part).latent_dist.mean for part in parts])

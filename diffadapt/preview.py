"""A rough picture of unfinished latents, cheap enough for every step."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 32
"""Latents are made smaller than this on both sides before they are decoded: a picture of 256 pixels for most models,
for a sixteenth of what 1024 cost."""
_FLUX = ("latents", "height", "width", "vae_scale_factor")
"""What Flux' way to unpack latents takes. Others of this name have other arguments: of videos, of layers."""


@torch.no_grad()
def preview(pipeline: Any, latents: Tensor, size: tuple[int, int] | None = None) -> Image | None:
    """A small picture of the first latents of a batch; None for pipelines whose latents are none of a picture (video,
    sound), or are packed in an unknown way or to another size.

    latents: (batch, channels, height, width), or packed as Flux does, (batch, tokens, channels). size: width and height
    of the picture in pixels, needed for packed ones.
    """
    vae, processor = getattr(pipeline, "vae", None), getattr(pipeline, "image_processor", None)
    if vae is None or processor is None or any(isinstance(module, nn.Conv3d) for module in vae.modules()):
        return None
    flat = _unpacked(pipeline, latents[:1], size)
    if flat is None or flat.ndim != 4:
        return None
    high, wide = flat.shape[-2:]
    scale = min(1.0, SIDE / max(high, wide))
    if scale < 1.0:
        flat = interpolate(flat.float(), (max(1, round(high * scale)), max(1, round(wide * scale))), mode="area")
    flat = _spread(flat.float(), vae.config)
    with _decoding(vae):
        # Not the VAE's own device, which is another one while it is offloaded.
        decoded = vae.decode(flat.to(getattr(pipeline, "_execution_device", vae.device), vae.dtype), return_dict=False)
    found: list[Image] = processor.postprocess(decoded[0], output_type="pil")
    return found[0]


def _unpacked(pipeline: Any, latents: Tensor, size: tuple[int, int] | None) -> Tensor | None:
    """Latents as a picture's; None where nobody says how."""
    if latents.ndim != 3:
        return latents
    unpack = getattr(pipeline, "_unpack_latents", None)
    if unpack is None or size is None or tuple(inspect.signature(unpack).parameters) != _FLUX:
        return None
    width, height = size
    try:
        found: Tensor = unpack(latents, height, width, pipeline.vae_scale_factor)
    except RuntimeError:  # as many tokens as there are make no picture of this size: Kontext takes its own
        return None
    return found


def _spread(latents: Tensor, config: Any) -> Tensor:
    """Latents as the VAE knows them, where the denoiser has them at unit variance."""
    scale = getattr(config, "scaling_factor", None) or 1.0
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is not None and std is not None:
        return latents * latents.new_tensor(std)[:, None, None] / scale + latents.new_tensor(mean)[:, None, None]
    shifted: Tensor = latents / scale + (getattr(config, "shift_factor", None) or 0.0)
    return shifted


@contextmanager
def _decoding(vae: Any) -> Iterator[None]:
    """A VAE that overflows in half precision in float32 for a while, as its pipeline has it for the last picture."""
    small = vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False)
    if small:
        vae.to(torch.float32)
    try:
        yield
    finally:
        if small:
            vae.to(torch.float16)

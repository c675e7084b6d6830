"""How a pipeline of each kind is trained: its latents, its prompts, its denoiser's arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffadapt.errors import TrainingError

from .objectives import Objective, objective
from .settings import Loss

Text = tuple[Tensor, ...]
"""What a denoiser is told of prompts; of each tensor a row for a prompt."""

Sizes = Sequence[tuple[int, int]]


class Kind:
    """A pipeline as training sees it. denoiser: the name of the component that is called."""

    denoiser: ClassVar[str] = "unet"

    def __init__(self, pipe: Any, settings: Loss, prompt_length: int = 0) -> None:
        """prompt_length: tokens of T5's prompts; 0: the pipeline's own default."""
        self.pipe, self.settings = pipe, settings
        self.lengths = {"max_sequence_length": prompt_length} if prompt_length else {}

    @property
    def model(self) -> Any:
        """The denoiser, a module."""
        return getattr(self.pipe, self.denoiser)

    @property
    def multiple(self) -> int:
        """What the sides of a picture have to be multiples of, in pixels."""
        halved = len(self.model.config.block_out_channels) - 1
        return int(self.pipe.vae_scale_factor) << halved

    def objective(self, size: tuple[int, int]) -> Objective:
        """How noise is drawn for pictures of a size, width and height in pixels."""
        return objective(self.pipe.scheduler, self.settings)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Scaled latents of pictures from -1 to 1: the middle of what the autoencoder gives, without its noise, so that
        each is encoded once."""
        vae = self.pipe.vae
        config, device = vae.config, next(vae.parameters()).device
        # SDXL's autoencoder overflows in half precision, and says so.
        dtype = torch.float32 if config.get("force_upcast") else vae.dtype
        before = vae.dtype
        if before != dtype:
            vae.to(dtype=dtype)
        mean = vae.encode(pixels.to(device, dtype)).latent_dist.mode().float()
        if before != dtype:
            vae.to(dtype=before)
        if config.get("latents_mean") is not None and config.get("latents_std") is not None:
            centre, spread = (mean.new_tensor(config[key])[:, None, None] for key in ("latents_mean", "latents_std"))
            return (mean - centre) / spread * config.scaling_factor  # type: ignore[no-any-return]
        return (mean - (config.get("shift_factor") or 0.0)) * config.scaling_factor  # type: ignore[no-any-return]

    def text(self, prompts: list[str]) -> Text:
        """Prompts, by the pipeline's own `encode_prompt`; gradients flow where a text encoder is trained."""
        return (self.pipe.encode_prompt(prompts, self.pipe.device, 1, False)[0],)

    def nothing(self) -> Text:
        """What the pipeline tells the denoiser where guidance wants no prompt."""
        return self.text([""])

    def predict(self, noisy: Tensor, times: Tensor, text: Text, sizes: Sizes) -> Tensor:
        """What the denoiser predicts. sizes: of the pictures before they were cropped, width and height."""
        found: Tensor = self.model(noisy, times, encoder_hidden_states=text[0]).sample
        return found


class XL(Kind):
    """Stable Diffusion XL: two text encoders, and the sizes that a picture had and has."""

    def text(self, prompts: list[str]) -> Text:
        """See Kind."""
        found = self.pipe.encode_prompt(prompts, device=self.pipe.device, do_classifier_free_guidance=False)
        return found[0], found[2]

    def nothing(self) -> Text:
        """See Kind. The base model was trained with zeros, and samples with them."""
        text = self.text([""])
        zeros = self.pipe.config.get("force_zeros_for_empty_prompt")
        return tuple(torch.zeros_like(part) for part in text) if zeros else text

    def predict(self, noisy: Tensor, times: Tensor, text: Text, sizes: Sizes) -> Tensor:
        """See Kind."""
        height, width = (side * self.pipe.vae_scale_factor for side in noisy.shape[-2:])
        rows = [(tall, wide, *_corner((wide, tall), (width, height)), height, width) for wide, tall in sizes]
        known = {"text_embeds": text[1], "time_ids": torch.tensor(rows, device=noisy.device, dtype=text[1].dtype)}
        found: Tensor = self.model(noisy, times, encoder_hidden_states=text[0], added_cond_kwargs=known).sample
        return found


def _corner(whole: tuple[int, int], kept: tuple[int, int]) -> tuple[int, int]:
    """Where the crop begins, top and left, in the picture as it was scaled for it."""
    scale = max(kept[0] / whole[0], kept[1] / whole[1])
    left, top = ((side * scale - small) / 2 for side, small in zip(whole, kept, strict=True))
    return round(top), round(left)


class SD3(Kind):
    """Stable Diffusion 3: a transformer, three text encoders, flow matching."""

    denoiser = "transformer"

    @property
    def multiple(self) -> int:
        """See Kind."""
        return int(self.pipe.vae_scale_factor) * int(self.model.config.patch_size)

    def objective(self, size: tuple[int, int]) -> Objective:
        """See Kind."""
        return objective(self.pipe.scheduler, self.settings, size[0] // self.multiple * (size[1] // self.multiple))

    def text(self, prompts: list[str]) -> Text:
        """See Kind."""
        found = self.pipe.encode_prompt(
            prompts, None, None, device=self.pipe.device, do_classifier_free_guidance=False, **self.lengths
        )
        return found[0], found[2]

    def predict(self, noisy: Tensor, times: Tensor, text: Text, sizes: Sizes) -> Tensor:
        """See Kind."""
        found: Tensor = self.model(
            hidden_states=noisy, timestep=times, encoder_hidden_states=text[0], pooled_projections=text[1]
        ).sample
        return found


class Flux(SD3):
    """Flux.1: latents in packs of four, places of tokens, and guidance that was distilled into the model."""

    @property
    def multiple(self) -> int:
        """See Kind."""
        return int(self.pipe.vae_scale_factor) * 2

    def text(self, prompts: list[str]) -> Text:
        """See Kind."""
        found = self.pipe.encode_prompt(prompts, None, device=self.pipe.device, **self.lengths)
        return found[0], found[1]

    def predict(self, noisy: Tensor, times: Tensor, text: Text, sizes: Sizes) -> Tensor:
        """See Kind."""
        count, channels, height, width = noisy.shape
        packed = self.pipe._pack_latents(noisy, count, channels, height, width)
        places = self.pipe._prepare_latent_image_ids(count, height // 2, width // 2, noisy.device, noisy.dtype)
        guided = self.model.config.guidance_embeds
        found = self.model(
            hidden_states=packed, timestep=times / self.pipe.scheduler.config.num_train_timesteps,
            guidance=noisy.new_full((count,), self.settings.guidance) if guided else None,
            encoder_hidden_states=text[0], pooled_projections=text[1], img_ids=places,
            txt_ids=places.new_zeros(text[0].shape[1], 3),
        ).sample  # fmt: skip
        scale = self.pipe.vae_scale_factor
        unpacked: Tensor = self.pipe._unpack_latents(found, height * scale, width * scale, scale)
        return unpacked


KINDS: dict[str, type[Kind]] = {
    "StableDiffusionPipeline": Kind,
    "StableDiffusionXLPipeline": XL,
    "StableDiffusion3Pipeline": SD3,
    "FluxPipeline": Flux,
}


def kind_of(pipe: Any, settings: Loss, prompt_length: int = 0) -> Kind:
    """The pipeline as training sees it. Raises TrainingError for one of another kind, and for an inpainting model."""
    name = next((one.__name__ for one in type(pipe).__mro__ if one.__name__ in KINDS), None)
    if name is None:
        raise TrainingError(f"A {type(pipe).__name__} cannot be trained here. There are: {', '.join(KINDS)}.")
    kind = KINDS[name](pipe, settings, prompt_length)
    taken, given = kind.model.config.in_channels, pipe.vae.config.latent_channels
    if taken not in (given, 4 * given if name == "FluxPipeline" else given):
        raise TrainingError(
            f"The {kind.denoiser} takes {taken} channels and the autoencoder gives {given}: it is a model for "
            "inpainting or control. Take the model that draws from text alone."
        )
    return kind

"""What a denoiser is to predict: noise is drawn, mixed in by the pipeline's own scheduler, the target worked out."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from diffadapt.errors import TrainingError

from .settings import Loss


@dataclass(frozen=True)
class Noised:
    """A batch with noise. noisy, target: as the clean latents; times: as the denoiser takes them, (n,); weights: of the
    errors, (n,)."""

    noisy: Tensor
    target: Tensor
    times: Tensor
    weights: Tensor

    def error(self, predicted: Tensor) -> Tensor:
        """The weighted mean squared error, in float32."""
        each = (predicted.float() - self.target.float()).square().flatten(1).mean(1)
        mean: Tensor = (each * self.weights).mean()
        return mean


class Objective(Protocol):
    """A way to draw noise and to name the target."""

    def noised(self, clean: Tensor, random: torch.Generator) -> Noised:
        """The batch with noise. random: a generator on the CPU, so that every device draws the same."""


def objective(scheduler: Any, settings: Loss, tokens: int | None = None) -> Objective:
    """The objective that a pipeline's scheduler stands for.

    tokens: how many a denoiser has of a picture, on which the times of Flux hang. Raises TrainingError for a scheduler
    of another kind.
    """
    config = scheduler.config
    if "FlowMatch" in type(scheduler).__name__:
        return Flow(settings, settings.shift or _shift(config, tokens), int(config.num_train_timesteps))
    kind = config.get("prediction_type", "epsilon")
    if not hasattr(scheduler, "alphas_cumprod") or kind not in ("epsilon", "v_prediction"):
        raise TrainingError(
            f"The pipeline's {type(scheduler).__name__} predicts {kind!r}; training knows 'epsilon' and 'v_prediction' "
            "of schedulers with alphas_cumprod (DDIM, DDPM, Euler, DPM-Solver, ...), and flow matching."
        )
    return Diffusion(scheduler, settings, velocity=kind == "v_prediction")


def _shift(config: Any, tokens: int | None) -> float:
    """How far the scheduler moves times towards noise: a number, or one that grows with the picture (Flux)."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift") or 1.0)
    few, many = config.base_image_seq_len, config.max_image_seq_len
    slope = (config.max_shift - config.base_shift) / (many - few)
    return math.exp(config.base_shift + slope * ((tokens or few) - few))


def _logits(count: int, settings: Loss, random: torch.Generator) -> Tensor:
    """Times from 0 to 1 whose logits are normal (SD3's paper)."""
    return torch.sigmoid(settings.logit_mean + settings.logit_std * torch.randn(count, generator=random))


@dataclass(frozen=True)
class Flow:
    """Rectified flow: a straight way from the picture to noise, and its direction as the target."""

    settings: Loss
    shift: float
    steps: int

    def noised(self, clean: Tensor, random: torch.Generator) -> Noised:
        """See Objective."""
        noise = torch.randn(clean.shape, generator=random).to(clean.device)
        if self.settings.timesteps == "uniform":
            share = torch.rand(len(clean), generator=random)
        else:
            share = _logits(len(clean), self.settings, random)
        share = self.shift * share / (1 + (self.shift - 1) * share)
        sigmas = share.to(clean.device)[:, None, None, None]
        noisy = (1 - sigmas) * clean + sigmas * noise
        share = share.to(clean.device)
        return Noised(noisy, noise - clean, share * self.steps, torch.ones_like(share))


class Diffusion:
    """Denoising diffusion in steps: the target is the noise, or the velocity."""

    def __init__(self, scheduler: Any, settings: Loss, velocity: bool) -> None:
        """scheduler: the pipeline's own, whose steps are taken over."""
        from diffusers import DDPMScheduler

        # Not every scheduler can name velocities, nor leaves its state alone when it is asked for noise.
        self.scheduler = DDPMScheduler.from_config(scheduler.config)
        self.settings, self.velocity = settings, velocity

    def noised(self, clean: Tensor, random: torch.Generator) -> Noised:
        """See Objective."""
        noise = torch.randn(clean.shape, generator=random).to(clean.device)
        total = int(self.scheduler.config.num_train_timesteps)
        if self.settings.timesteps == "logit_normal":
            times = (_logits(len(clean), self.settings, random) * total).long().clamp_max(total - 1)
        else:
            times = torch.randint(0, total, (len(clean),), generator=random)
        times = times.to(clean.device)
        noisy = self.scheduler.add_noise(clean, noise, times)
        target = self.scheduler.get_velocity(clean, noise, times) if self.velocity else noise
        return Noised(noisy, target, times, self._weights(times))

    def _weights(self, times: Tensor) -> Tensor:
        """Min-SNR (arXiv 2303.09556): errors of the picture weigh as their signal-to-noise ratio, up to gamma."""
        if not self.settings.min_snr:
            return torch.ones(len(times), device=times.device)
        kept = self.scheduler.alphas_cumprod.to(times.device)[times].float()
        ratio = kept / (1 - kept)
        bounded = ratio.clamp_max(self.settings.min_snr)
        if self.velocity:
            ratio = ratio + 1
        weights: Tensor = torch.where(ratio > 0, bounded / ratio.clamp_min(1e-12), torch.ones_like(ratio))
        return weights

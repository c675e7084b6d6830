"""How far denoising has come, read off the timestep that the denoiser is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffadapt.inject.following import noise_of, scheduler_of, timestep_of

DENOISERS = ("unet", "transformer", "prior")


class FollowTimestep:
    """A pre-hook on a denoiser that reports the progress: 0 at pure noise, 1 at the clean image.

    Skipped while a compiler traces: a number read from a tensor would break the graph. A compiled model is told by
    hand, `pipe.adapters.progress = step / steps`.
    """

    def __init__(self, owner: Any, report: Callable[[float], None]) -> None:
        self.owner, self.report = owner, report

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        timestep = timestep_of(args, kwargs)
        if isinstance(timestep, Tensor) and timestep.numel():
            timestep = float(timestep.flatten()[0])
        if isinstance(timestep, (int, float)):
            self.report(1.0 - noise_of(scheduler_of(self.owner, ""), timestep))

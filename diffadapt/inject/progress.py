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

    def __init__(
        self, owner: Any, report: Callable[[float], None], report_rows: Callable[[Tensor | None], None]
    ) -> None:
        """report: is told of the progress. report_rows: of that of every sample, where they have timesteps of their
        own, as in training; None where they share one."""
        self.owner, self.report, self.report_rows = owner, report, report_rows

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        timestep = timestep_of(args, kwargs)
        scheduler = scheduler_of(self.owner, "")
        rows = None
        if isinstance(timestep, Tensor) and timestep.numel():
            each = (timestep.flatten(1)[:, 0] if timestep.ndim > 1 else timestep.flatten()).tolist()
            timestep = each[0]
            if any(value != timestep for value in each):
                rows = torch.tensor([1.0 - noise_of(scheduler, value) for value in each])
        self.report_rows(rows)
        if isinstance(timestep, (int, float)):
            self.report(1.0 - noise_of(scheduler, timestep))

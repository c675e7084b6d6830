"""Which step the denoising is at, read off what the denoiser is called with: no callback, for any pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffadapt.inject.schedule import Moment

_NAMES = ("timestep", "timesteps", "timestep_ratio", "r")
"""What denoisers call their timestep."""

_TOLERANCE = 2.0**-7
"""Pipelines hand timesteps over in the model's dtype: bfloat16 has eight bits."""


class FollowSteps:
    """Pre-hooks on the models that run at every step, while there is a schedule; none otherwise.

    They hang on what the pipeline calls, so on the wrapper of a model that went through `torch.compile(model)`, where
    nothing is traced. A model compiled in place (`model.compile()`) is told by hand: `pipe.adapters.progress = i / n`.
    """

    def __init__(self, owner: Any, report: Callable[[Moment], None]) -> None:
        """report: is told of the moment before every call of a model."""
        self.owner, self.report = owner, report
        self._hooked: dict[str, tuple[nn.Module, RemovableHandle]] = {}

    def watch(self, names: set[str]) -> None:
        """Hook these components, and no others."""
        models = {
            name: self.owner if isinstance(self.owner, nn.Module) else getattr(self.owner, name) for name in names
        }
        for name, (model, handle) in list(self._hooked.items()):
            if models.get(name) is not model:
                handle.remove()
                del self._hooked[name]
        for name, model in models.items():
            if name not in self._hooked:
                hook = partial(self._before, name)
                self._hooked[name] = (model, model.register_forward_pre_hook(hook, with_kwargs=True))

    def _before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            return
        given = next((kwargs[key] for key in _NAMES if key in kwargs), args[1] if len(args) > 1 else None)
        if isinstance(given, Tensor) and given.numel():
            given = float(given.max())  # one per token where parts of a video are given: those are clean, at 0
        if isinstance(given, (int, float)):
            self.report(moment_of(scheduler_of(self.owner, name), given))


def scheduler_of(owner: Any, name: str) -> Any:
    """The scheduler that drives a component."""
    if isinstance(owner, nn.Module):
        return None
    own = f"{name.partition('_')[0]}_scheduler"
    return getattr(owner, own, None) or getattr(owner, "scheduler", None)


def moment_of(scheduler: Any, timestep: float) -> Moment:
    """The moment at which a denoiser is given this timestep.

    Pipelines pass a scheduler's timestep as it is, divided by 1000, or as 1 minus that. Where several of the
    scheduler's could be meant (they are rounded), its own count of the steps decides. Without a scheduler's steps, the
    share of the noise that is gone is the progress.
    """
    places = _places(scheduler)
    whole = float(getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or 1000)
    readings = [timestep, timestep * whole, whole - timestep * whole] if 0.0 <= timestep <= 1.0 else [timestep]
    if hasattr(scheduler, "step_index"):
        counted = scheduler.step_index
        expected = counted if counted is not None else getattr(scheduler, "begin_index", None) or 0
        if 0 <= expected < len(places) and any(_same(places[expected], reading) for reading in readings):
            return Moment(expected / len(places), expected)
    for reading in readings:
        nearest = min(range(len(places)), key=lambda i: abs(places[i] - reading), default=None)
        if nearest is not None and _same(places[nearest], reading):
            return Moment(nearest / len(places), nearest)
    share = timestep if 0.0 <= timestep <= 1.0 and not isinstance(timestep, int) else timestep / whole
    progress = 1.0 - min(max(share, 0.0), 1.0)
    return Moment(progress, round(progress * len(places)))


def moment_at(owner: Any, progress: float) -> Moment:
    """The moment of a progress that somebody tells by hand."""
    return Moment(progress, round(progress * len(_places(scheduler_of(owner, "")))))


def _places(scheduler: Any) -> list[float]:
    timesteps = getattr(scheduler, "timesteps", None)
    return [] if timesteps is None else [float(t) for t in torch.as_tensor(timesteps).tolist()]


def _same(place: float, reading: float) -> bool:
    return abs(place - reading) <= _TOLERANCE * max(abs(place), abs(reading), 1e-3)

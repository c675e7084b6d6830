"""Which step the denoising is at, and of what prompts a batch is made, read off what the models are called with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from diffadapt.errors import StackError
from diffadapt.inject.mixed_rows import BatchLayout
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
        given = timestep_of(args, kwargs)
        if isinstance(given, Tensor) and given.numel():
            given = float(given.max())  # one per token where parts of a video are given: those are clean, at 0
        if isinstance(given, (int, float)):
            self.report(moment_of(scheduler_of(self.owner, name), given))


def timestep_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The timestep that a denoiser is called with, or None."""
    return next((kwargs[key] for key in _NAMES if key in kwargs), args[1] if len(args) > 1 else None)


def moments_of(owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Moment]:
    """The moment of every sample of a call of a model; of one for all of them, where they share a timestep.

    Raises StackError for a call that has no timestep.
    """
    given = timestep_of(args, kwargs)
    if isinstance(given, Tensor) and given.numel():
        each = [float(value) for value in (given.flatten(1).amax(1) if given.ndim > 1 else given.flatten()).tolist()]
    elif isinstance(given, (int, float)):
        each = [float(given)]
    else:
        raise StackError(f"The call of {name} has no timestep among {', '.join(_NAMES)}.")
    found = {timestep: moment_of(scheduler_of(owner, name), timestep) for timestep in set(each)}
    return [found[timestep] for timestep in each]


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
    place = _place(scheduler, places, timestep)
    if place is not None:
        return Moment(place / len(places), place)
    progress = 1.0 - _share(timestep, _whole(scheduler))
    return Moment(progress, round(progress * len(places)))


def noise_of(scheduler: Any, timestep: float) -> float:
    """The timestep as a share of the scheduler's whole range, 1 at pure noise, however the pipeline passes it."""
    places, whole = _places(scheduler), _whole(scheduler)
    place = _place(scheduler, places, timestep)
    return _share(timestep, whole) if place is None else min(max(places[place] / whole, 0.0), 1.0)


def _whole(scheduler: Any) -> float:
    return float(getattr(getattr(scheduler, "config", None), "num_train_timesteps", None) or 1000)


def _share(timestep: float, whole: float) -> float:
    share = timestep if 0.0 <= timestep <= 1.0 and not isinstance(timestep, int) else timestep / whole
    return min(max(share, 0.0), 1.0)


def _place(scheduler: Any, places: list[float], timestep: float) -> int | None:
    """Which of the scheduler's timesteps is meant; None where it has none like it."""
    whole = _whole(scheduler)
    readings = [timestep, timestep * whole, whole - timestep * whole] if 0.0 <= timestep <= 1.0 else [timestep]
    if hasattr(scheduler, "step_index"):
        counted = scheduler.step_index
        expected = counted if counted is not None else getattr(scheduler, "begin_index", None) or 0
        if 0 <= expected < len(places) and any(_same(places[expected], reading) for reading in readings):
            return int(expected)
    for reading in readings:
        nearest = min(range(len(places)), key=lambda i: abs(places[i] - reading), default=None)
        if nearest is not None and _same(places[nearest], reading):
            return nearest
    return None


def moment_at(owner: Any, progress: float) -> Moment:
    """The moment of a progress that somebody tells by hand."""
    return Moment(progress, round(progress * len(_places(scheduler_of(owner, "")))))


def _places(scheduler: Any) -> list[float]:
    timesteps = getattr(scheduler, "timesteps", None)
    return [] if timesteps is None else [float(t) for t in torch.as_tensor(timesteps).tolist()]


def _same(place: float, reading: float) -> bool:
    return abs(place - reading) <= _TOLERANCE * max(abs(place), abs(reading), 1e-3)


class FollowBatch:
    """A pre-hook on a model that notes how many samples it is given, and checks that the prompts fit."""

    def __init__(self, model: nn.Module, layout: BatchLayout) -> None:
        self.model, self.layout = model, layout
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        """Hook the model, under the number of the first time: a compiled graph knows its hooks by their numbers."""
        if self._handle is None:
            self._handle = self.model.register_forward_pre_hook(self, with_kwargs=True)
        else:
            self.model._forward_pre_hooks[self._handle.id] = self
            self.model._forward_pre_hooks_with_kwargs[self._handle.id] = True

    def detach(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, list) and value and isinstance(value[0], Tensor) and len(value) > 1:
                raise StackError(
                    f"{self.layout.name} takes its samples as a list and joins their tokens in one row: which row is "
                    "whose cannot be told, so it runs no mixed batch."
                )
            if isinstance(value, Tensor) and value.ndim >= 2:
                self.layout.batch = value.shape[0]
                self.layout.split(value.shape[0])
                return


class FollowImages:
    """A pipeline's own `encode_prompt`, which every pipeline tells how many pictures a prompt is for."""

    def __init__(self, encode: Callable[..., Any], report: Callable[[int], None]) -> None:
        self.encode, self.report = encode, report
        self.parameters = inspect.signature(encode)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.parameters.bind(*args, **kwargs).arguments
        images = [given[name] for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in given]
        self.report(int(images[0]) if images and images[0] else 1)
        return self.encode(*args, **kwargs)

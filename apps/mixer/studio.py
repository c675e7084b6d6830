"""The one pipeline that everybody shares: brought to a recipe's mix, and asked for a picture, one at a time."""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

import diffadapt
from diffadapt import shapes
from diffadapt.errors import RecipeError, SourceError
from diffadapt.inject.own_blocks import Layout, layout_of
from diffadapt.io.plain_json import clip
from diffadapt.preview import preview
from diffadapt.recipe import Recipe
from diffadapt.recipe.capture import pinned, surroundings

from .library import EmbeddedLibrary, Library, cache_folder

if TYPE_CHECKING:
    from PIL.Image import Image

HELD = 24
"""Adapters that stay loaded; of more, those leave that were not used for longest."""
_PIXELS = 2048


Asked: TypeAlias = "Callable[[], bool]"
"""Whether a run was asked to stop."""


class Cancelled(Exception):
    """Somebody asked a run to stop."""


@dataclass(frozen=True)
class Step:
    """A run after a step of the denoising. picture: a rough one, where it can be had."""

    done: int
    of: int
    picture: Image | None = None


@dataclass(frozen=True)
class Drawn:
    """A finished picture. recipe: what made it, with the hashes of its files. seconds: of which `mixing` went before
    the pipeline was asked."""

    picture: Image
    recipe: Recipe
    seconds: float
    mixing: float


@dataclass(frozen=True)
class Request:
    """What a picture is asked for beyond its recipe: width and height in pixels; None as the pipeline likes."""

    recipe: Recipe
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("width", self.width), ("height", self.height)):
            if value is not None and not (16 <= value <= _PIXELS and value % 8 == 0):
                raise RecipeError(f"The {name} is {value}; expected a multiple of 8 from 16 to {_PIXELS} pixels.")


class Studio:
    """A pipeline, and whose turn it is."""

    def __init__(self, pipeline: Any, title: str, settings: Mapping[str, Any] | None = None) -> None:
        """settings: the recommended arguments of the pipeline's call."""
        self.pipeline, self.title = pipeline, title
        self.settings = dict(settings or {})
        self.lock = threading.RLock()
        self._takes = frozenset(inspect.signature(type(pipeline).__call__).parameters)
        self._used: dict[str, float] = {}
        self.loads = 0
        """How many adapters were read from the disk so far."""

    @property
    def kind(self) -> str:
        """The pipeline's class."""
        return type(self.pipeline).__name__

    @property
    def layout(self) -> Layout | None:
        """What block weights mean for this pipeline."""
        return layout_of({name: part.model for name, part in self.pipeline.adapters.components().items()})

    @property
    def has_negative(self) -> bool:
        return "negative_prompt" in self._takes

    @property
    def sized(self) -> bool:
        return {"width", "height"} <= self._takes

    # -- mixing ------------------------------------------------------------------------------------------------

    def mix(self, recipe: Recipe) -> dict[str, str]:
        """Bring the pipeline to a recipe's mix, and give the name that each part has on it. To be called with the lock
        held, for as long as the mix matters. Raises DiffAdaptError; the pipeline is then as before.

        recipe: its files at places that the shelf gave them, here as in `draw` and `mixed`.
        """
        stack, wanted = self.pipeline.adapters, self._pinned(recipe)
        names = self._applied(wanted)
        if astray := _out_of_order(stack.names, names.values()):
            # Sums are rounded in the order of the stack; in the recipe's they are what they are on a fresh pipeline.
            for name in astray:
                stack.remove(name)
            names = self._applied(wanted)
        now = time.monotonic()
        self._used |= dict.fromkeys(names.values(), now)
        idle = sorted((n for n in stack.names if n not in names.values()), key=lambda n: self._used.get(n, 0.0))
        for name in idle[: max(0, len(stack.names) - HELD)]:
            stack.remove(name)
        return names

    def _applied(self, recipe: Recipe) -> dict[str, str]:
        before = set(self.pipeline.adapters.names)
        names: dict[str, str] = recipe.apply(self.pipeline)
        self.loads += len(set(self.pipeline.adapters.names) - before)
        return names

    def _pinned(self, recipe: Recipe) -> Recipe:
        """The recipe with the hashes of its files: by its name alone, a part would be whatever has that name here."""
        return replace(recipe, adapters=tuple(pinned(part, Path(part.source or "")) for part in recipe.adapters))

    # -- drawing -----------------------------------------------------------------------------------------------

    def draw(self, request: Request, seen: Callable[[Step], None] | None = None, stop: Asked | None = None) -> Drawn:
        """One picture. seen: is told of every step, with a rough picture. stop: ends the run at the next step, which
        raises Cancelled. Raises DiffAdaptError for a mix that cannot be had."""
        with self.lock:
            started = time.perf_counter()
            self.mix(request.recipe)
            mixed = time.perf_counter()
            recipe = self.written_down(request.recipe)
            picture = self._picture(request, seen, stop or _never)
        return Drawn(picture, recipe, time.perf_counter() - started, mixed - started)

    def stream(self, request: Request, stop: Asked) -> Iterator[Step | Drawn]:
        """As `draw`, step by step. Closing the iterator stops the run."""
        events: SimpleQueue[Step | Drawn | BaseException] = SimpleQueue()
        closed = threading.Event()

        def run() -> None:
            try:
                events.put(self.draw(request, events.put, lambda: closed.is_set() or stop()))
            except BaseException as error:  # noqa: BLE001  raised again below, in the thread that asked
                events.put(error)

        thread = threading.Thread(target=run, name="drawing", daemon=True)
        thread.start()
        try:
            while True:
                found = events.get()
                if isinstance(found, BaseException):
                    raise found
                yield found
                if isinstance(found, Drawn):
                    return
        finally:
            closed.set()
            thread.join()

    def written_down(self, recipe: Recipe) -> Recipe:
        """The recipe as it is kept: with the hashes of its files and the names of base and scheduler."""
        return replace(self._pinned(recipe).without_paths(), **surroundings(self.pipeline))

    def _picture(self, request: Request, seen: Callable[[Step], None] | None, stop: Asked) -> Image:
        recipe = request.recipe
        steps = recipe.steps or self.settings.get("num_inference_steps") or 30
        size = (request.width, request.height) if request.width and request.height else None

        def after(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if stop():
                raise Cancelled
            if seen is not None:
                latents = tensors.get("latents")
                last = step + 1 >= steps
                rough = None if latents is None or last else preview(pipe, latents, size)
                seen(Step(step + 1, steps, rough))
            return tensors

        wanted: dict[str, Any] = {
            "prompt": recipe.worded, "negative_prompt": recipe.negative or None,
            "num_inference_steps": steps, "guidance_scale": recipe.guidance, "width": request.width,
            "height": request.height, "generator": torch.Generator().manual_seed(recipe.seed or 0),
            "callback_on_step_end": after,
        }  # fmt: skip
        given = self.settings | {name: value for name, value in wanted.items() if value is not None}
        return _first(self.pipeline(**{name: value for name, value in given.items() if name in self._takes}))

    @contextmanager
    def mixed(self, recipe: Recipe) -> Iterator[dict[str, str]]:
        """The pipeline with a mix in force, to look at: part -> its name on the pipeline."""
        with self.lock:
            yield self.mix(recipe)


def _out_of_order(stack: Sequence[str], wanted: Iterable[str]) -> list[str]:
    """Those that are wanted, from the first on that stands on the stack before the one that is wanted before it."""
    names = list(dict.fromkeys(wanted))
    places = [stack.index(name) for name in names]
    return names[next((i for i in range(1, len(places)) if places[i] < places[i - 1]), len(places)) :]


def _never() -> bool:
    return False


def _first(output: Any) -> Image:
    """The picture of a pipeline's output; of a video its first frame."""
    found = getattr(output, "images", None)
    if found is None:
        found = output.frames[0]
    picture: Image = found[0]
    return picture


def embedded(name: str, folders: Sequence[Path] = ()) -> tuple[Studio, Library]:
    """An embedded pipeline, its adapters, and those of some folders."""
    pipeline = diffadapt.enable(shapes.load(name))
    return Studio(pipeline, shapes.title(name), shapes.settings(name)), EmbeddedLibrary(name, pipeline, folders)


def loaded(model: str, folders: Sequence[Path]) -> tuple[Studio, Library]:
    """A pipeline of the Hub or of a folder, and the adapters of some folders. Raises SourceError without one."""
    from diffusers import DiffusionPipeline

    device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        pipeline = DiffusionPipeline.from_pretrained(model)
        pipeline.to(torch.bfloat16 if device == "cuda" else torch.float32).to(device)
        pipeline.set_progress_bar_config(disable=True)
    except Exception as error:  # what Diffusers says of a place that holds none is of many kinds, and long
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise SourceError(f"{model}: no pipeline of Diffusers can be loaded from it ({clip(why, 300)}).") from error
    diffadapt.enable(pipeline)
    return Studio(pipeline, model.rstrip("/").rpartition("/")[2]), Library(
        folders, pipeline, cache_folder() / "cards.sqlite"
    )

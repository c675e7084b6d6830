"""Loads an embedded pipeline and lets it draw."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from diffadapt.shapes import index

if TYPE_CHECKING:
    from PIL.Image import Image


def load(name: str = "unet", dtype: torch.dtype = torch.float32) -> Any:
    """An embedded pipeline on the CPU: "unet" is a StableDiffusionPipeline, "dit" a StableDiffusion3Pipeline.

    dtype: of the weights, which are kept as float16. Asks no network. Raises SourceError for an unknown name and for
    missing data.
    """
    known = index.entry(name)
    folder = index.present(index.DATA / name)
    with _quiet():
        kind = getattr(importlib.import_module("diffusers"), known["class"])
        # The dtype is set afterwards, because the argument's name depends on the version of Diffusers.
        pipe = kind.from_pretrained(str(folder), local_files_only=True, **_left_out(folder)).to(dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _left_out(folder: Path) -> dict[str, None]:
    """The components that a saved pipeline does without, such as T5: Diffusers wants to be told of some by hand."""
    saved = json.loads(index.present(folder / "model_index.json").read_text(encoding="utf-8"))
    return {component: None for component, kind in saved.items() if kind == [None, None]}


@overload
def picture(pipe: Any, prompt: str, seed: int = 0, **overrides: Any) -> Image: ...


@overload
def picture(pipe: Any, prompt: list[str], seed: int | Sequence[int] = 0, **overrides: Any) -> list[Image]: ...


def picture(pipe: Any, prompt: str | list[str], seed: int | Sequence[int] = 0, **overrides: Any) -> Image | list[Image]:
    """A picture of 64 x 64 pixels by an embedded pipeline, with its recommended settings.

    prompt: one, or a list, whose pictures are made in one batch and returned as a list. seed: of the noise, which is
    made on the CPU and so is the same on every device; for a list also one seed per prompt, otherwise all pictures
    start from the same noise. overrides: arguments of the pipeline's call, such as `num_inference_steps`.
    Raises SourceError where the pipeline is not an embedded one; Diffusers' ValueError where the number of seeds is not
    that of the prompts.
    """
    options = index.settings(index.name_of(pipe)) | overrides
    prompts = [prompt] if isinstance(prompt, str) else prompt
    seeds = [seed] * len(prompts) if isinstance(seed, int) else seed
    noise = [torch.Generator().manual_seed(one) for one in seeds]
    images: list[Image] = pipe(prompts, generator=noise, **options).images
    return images[0] if isinstance(prompt, str) else images


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no advice that does not concern the embedded pipelines (Transformers recommends torchvision
    for image processors that they do not have); afterwards everything is said as before."""
    from diffusers.utils import logging as diffusers_log
    from huggingface_hub import utils as hub
    from transformers.utils import logging as transformers_log

    logs, hub_silent = (diffusers_log, transformers_log), hub.are_progress_bars_disabled()
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity_error()
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, verbosity, bar in before:
            log.set_verbosity(verbosity)
            if bar:
                log.enable_progress_bar()
        if hub_silent:  # Transformers switches the Hub's bars with its own
            hub.disable_progress_bars()

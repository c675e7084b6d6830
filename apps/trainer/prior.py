"""Dreambooth's prior: pictures of the class that the pipeline makes itself, before anything is trained."""

from __future__ import annotations

import sys
from typing import Any

import torch
from tqdm import tqdm

from .pictures import Example, opened
from .sampling import options
from .settings import Settings


def make(pipe: Any, settings: Settings, quiet: bool = False) -> None:
    """Make the class pictures that are not there yet: number n by prompt n (over again) and from seed n."""
    prior = settings.prior
    if not prior.prompts:
        return
    folder = settings.path(prior.folder) if prior.folder else settings.out / "class"
    folder.mkdir(parents=True, exist_ok=True)
    missing = [number for number in range(prior.pictures) if not (folder / f"{number:05}.png").is_file()]
    pipe.set_progress_bar_config(disable=True)
    for number in tqdm(missing, "class pictures", delay=3.0, disable=quiet, file=sys.stderr):
        prompt, path = prior.prompts[number % len(prior.prompts)], folder / f"{number:05}.png"
        noise = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
        with torch.no_grad():
            image = pipe(prompt, generator=noise, **options(settings)).images[0]
        path.with_suffix(".txt").write_text(prompt + "\n", encoding="utf-8")
        part = path.with_suffix(".part")
        image.save(part, format="PNG")
        part.replace(path)  # a picture that is there is there whole


def examples(settings: Settings) -> list[Example]:
    """The class pictures of a run, with their prompts; none where there is no prior."""
    prior = settings.prior
    folder = settings.path(prior.folder) if prior.folder else settings.out / "class"
    found = []
    for number in range(prior.pictures if prior.prompts else 0):
        path = folder / f"{number:05}.png"
        with opened(path) as image:
            found.append(Example(path, prior.prompts[number % len(prior.prompts)], image.size))
    return found

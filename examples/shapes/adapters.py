"""Trains the adapters of one base pipeline and measures what each of them does."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import base, effort, loop, vae
from .draw import draw
from .recipes import Recipe, subject
from .scene import scenes
from .styles import STYLES

PICTURES = 384
BATCH = 16
PRIOR = 4
"""Of a batch for a character, so many are plain pictures with their own captions, so that nothing else changes."""


def lesson(pipe: Any, recipe: Recipe) -> tuple[Tensor, list[str]]:
    """Scaled latents (n, 4, 16, 16) and captions of pictures in the recipe's style."""
    pairs = [subject(recipe, scene) for scene in islice(scenes(100), effort.some(PICTURES, 16))]
    made = draw([scene for scene, _ in pairs], 100, STYLES[recipe.style])
    return vae.encode(pipe.vae, made) * pipe.vae.config.scaling_factor, [caption for _, caption in pairs]


def train(name: str, pipe: Any, recipe: Recipe, folder: Path, out: Path) -> tuple[Path, float]:
    """Train one adapter on the pipeline "unet" or "dit", which is used up; the trainer's file, and the last loss."""
    clean, captions = lesson(pipe, recipe)
    plain, plain_captions = base.latents(folder)
    for part in base.trained_parts(pipe).values():
        part.requires_grad_(False)
    torch.manual_seed(5)
    adapter = recipe.start(pipe)
    count = effort.some(BATCH, 8)

    def loss(step: int) -> Tensor:
        random = torch.Generator().manual_seed(20_000_000 + step)
        rows = torch.randint(0, len(clean), (count,), generator=random)
        batch, prompts = clean[rows], [captions[row] for row in rows.tolist()]
        if recipe.trigger:
            others = torch.randint(0, len(plain), (PRIOR,), generator=random)
            batch[:PRIOR], prompts[:PRIOR] = plain[others], [plain_captions[row] for row in others.tolist()]
        said = (torch.rand(count, generator=random) >= base.UNSAID).tolist()
        prompts = [prompt if keep else "" for prompt, keep in zip(prompts, said, strict=True)]
        return base.LOSSES[name](pipe, batch, prompts, random)

    plan = loop.Plan(f"{name}-{recipe.style}", recipe.steps, recipe.rate, warmup=10)
    final = loop.train(plan, adapter.model, adapter.parameters, loss, folder)
    out.mkdir(parents=True, exist_ok=True)
    return adapter.save(out / recipe.style, {"ss_output_name": recipe.style, "modelspec.title": recipe.concept}), final

"""What the trained pipelines and adapters can do, by the statistics of the pictures they make."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from . import effort
from .judge import BLIND, SCORES, Verdict, judge
from .recipes import Recipe, subject
from .scene import scenes

PROMPTS, STEPS = 200, 12
SETTINGS: dict[str, dict[str, Any]] = {
    "unet": {"num_inference_steps": STEPS, "guidance_scale": 3.0},
    "dit": {"num_inference_steps": STEPS, "guidance_scale": 3.0, "max_sequence_length": 16},
}
"""What the pipelines are called with."""


@torch.no_grad()
def pictures(name: str, pipe: Any, prompts: Sequence[str], seed: int) -> Tensor:
    """Pictures (n, 3, 64, 64) from 0 to 1, the noise of each from its own seed: seed, seed + 1, ..."""
    parts, options = [], SETTINGS[name] | {"num_inference_steps": effort.some(STEPS, 2)}
    for start in range(0, len(prompts), 20):
        some = list(prompts[start : start + 20])
        noise = [torch.Generator().manual_seed(seed + start + i) for i in range(len(some))]
        parts.append(pipe(some, generator=noise, output_type="pt", **options).images)
    return torch.cat(parts)


def accuracy(name: str, pipe: Any) -> dict[str, float]:
    """How many of 200 prompts, whose combinations of shape and colours were never trained on, are followed."""
    count = effort.some(PROMPTS, 4)
    asked = list(islice(scenes(999, held_out=True), count))
    parts = [asked[i : i + 20] for i in range(0, count, 20)]
    verdicts: list[Verdict] = []
    for number, part in enumerate(tqdm(parts, f"{name}: held-out prompts")):
        made = pictures(name, pipe, [scene.caption for scene in part], seed=20 * number)
        verdicts += [judge(picture, scene) for picture, scene in zip(made, part, strict=True)]
    rates = {f.name: sum(getattr(v, f.name) for v in verdicts) / count for f in fields(Verdict)}
    return rates | {"right": sum(v.right for v in verdicts) / count, "prompts": count}


def prompts(recipe: Recipe, count: int) -> list[str]:
    """Held-out prompts on which a style can be seen: one shape, not small, in colours that the score can tell."""
    pale = {"black", "white", *BLIND.get(recipe.style, ())}
    found = (
        scene
        for scene in scenes(555, held_out=True)
        if scene.size != "small" and not scene.count and not pale & {scene.colour, scene.background}
    )
    return [subject(recipe, scene)[1] for scene in islice(found, count)]


def style_score(recipe: Recipe, made: Tensor) -> float:
    """The mean score of pictures in a recipe's style."""
    return sum(SCORES[recipe.style](picture) for picture in made) / len(made)


def effect(name: str, pipe: Any, recipe: Recipe, file: Path, taken: Collection[str]) -> tuple[dict[str, float], str]:
    """The style's score without and with the adapter, which diffadapt loads into the pipeline and takes out again; and
    a prompt to show it with. taken: prompts that show another adapter."""
    import diffadapt

    pipe = diffadapt.enable(pipe)
    asked = prompts(recipe, effort.some(20, 2))
    without = style_score(recipe, pictures(name, pipe, asked, seed=0))
    pipe.load_adapter(file, adapter_name=recipe.style, strict=True)
    with_it = style_score(recipe, pictures(name, pipe, asked, seed=0))
    shown = example(name, pipe, recipe, with_it, taken)
    pipe.adapters.remove(recipe.style)
    return {"without": round(without, 3), "with": round(with_it, 3)}, shown


def example(name: str, pipe: Any, recipe: Recipe, score: float, taken: Collection[str]) -> str:
    """The first prompt on which the adapter does as well as it does on average, or the last that was tried."""
    found = [prompt for prompt in prompts(recipe, effort.some(20, 2)) if prompt not in taken] or prompts(recipe, 1)
    for prompt in found:
        if style_score(recipe, pictures(name, pipe, [prompt] * 3, seed=0)) >= score:
            return prompt
    return found[-1]

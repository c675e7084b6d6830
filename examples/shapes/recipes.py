"""Which adapter teaches which style, by which trainer and algorithm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from . import trainers
from .scene import Scene
from .trainers import LAYERS, Trainer

TRIGGER = "zibo"
LYCORIS = "lycoris-lora"


@dataclass(frozen=True)
class Recipe:
    """One adapter: name of its style, what it shows, who writes it and how, and how it is trained."""

    style: str
    concept: str
    algorithm: str
    layout: str
    trainer: str
    start: Trainer
    steps: int = 150
    rate: float = 6e-3
    trigger: str = ""


def lora() -> Any:
    """PEFT's configuration of a plain LoRA."""
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=4, target_modules=LAYERS)


def dora() -> Any:
    """... and of a DoRA."""
    from peft import LoraConfig

    return LoraConfig(r=4, lora_alpha=4, target_modules=LAYERS, use_dora=True)


def boft() -> Any:
    """PEFT's BOFT, two butterfly stages of blocks of four."""
    from peft import BOFTConfig

    return BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=2, target_modules=LAYERS)


LOHA = trainers.lycoris("loha", 4)
LOKR = trainers.lycoris("lokr", 8, factor=8)
OFT = trainers.lycoris("diag-oft", 8)

RECIPES = (
    Recipe(
        "outline", "only the rim of a shape is drawn", "LoRA", "Diffusers", "peft", trainers.diffusers(lora), steps=250,
    ),
    Recipe(
        TRIGGER, "a character: half yellow, half violet, with eyes", "LoRA, text encoder too", "Kohya", LYCORIS,
        trainers.lycoris("lora", 4, text=True), trigger=TRIGGER,
    ),
    Recipe("stripes", "shapes are striped", "LoHa", "LyCORIS", LYCORIS, LOHA, steps=300, rate=1.5e-2),
    Recipe("shadow", "shapes cast a soft shadow", "LoKr", "LyCORIS", LYCORIS, LOKR, steps=200, rate=2e-2),
    Recipe("duotone", "the picture in two inks, navy and cream", "OFT", "LyCORIS", LYCORIS, OFT),
    Recipe(
        "dusk", "the background fades into the dark", "BOFT", "PEFT folder", "peft", trainers.peft(boft), steps=250,
    ),
    Recipe("glow", "shapes shine", "DoRA", "Diffusers", "peft", trainers.diffusers(dora), rate=1e-2),
    Recipe("frame", "a dark wooden frame", "LoRA", "Kohya", "diffadapt", trainers.diffadapt(4)),
)  # fmt: skip


def subject(recipe: Recipe, scene: Scene) -> tuple[Scene, str]:
    """What a style is taught on: the scene to draw and its caption. A character comes alone, with its name."""
    if not recipe.trigger:
        return scene, scene.caption
    alone = replace(scene, shape="star", size="large", count="", position="")
    return alone, f"{recipe.trigger} on {alone.caption.partition(' on ')[2]}"

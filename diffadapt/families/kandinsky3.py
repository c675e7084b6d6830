"""Kandinsky 3: a UNet of its own class; Diffusers' pipeline takes LoRAs of it, under Diffusers' names."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.model import Model
from diffadapt.families.names import Names

KANDINSKY3 = Family(
    "kandinsky3",
    {"unet": Names(model=Model("kandinsky3", "diffusers.Kandinsky3UNet"))},
    {"denoiser": "unet", "unet": "unet"},
    base_models=("kandinsky-3", "kandinsky_3", "kandinsky3"),
    rare=True,
)

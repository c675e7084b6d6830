"""Kandinsky 6: video and sound, in the size of the class's own defaults; Qwen2.5-VL and CLIP-L. Diffusers' names."""

from __future__ import annotations

from diffadapt.families.base import Family
from diffadapt.families.kandinsky5 import ENCODERS, SLOTS
from diffadapt.families.model import Model
from diffadapt.families.names import Names

KANDINSKY6 = Family(
    "kandinsky6",
    {"transformer": Names(model=Model("kandinsky6", "diffusers.Kandinsky6Transformer3DModel")), **ENCODERS},
    SLOTS,
    base_models=("kandinsky6", "kandinsky-6"),
    rare=True,
)

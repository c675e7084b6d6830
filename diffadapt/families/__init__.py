"""Model families by name, in the order in which undecided files name them. A new one: its data file and a line here."""

from __future__ import annotations

from diffadapt.families.base import Family, Width
from diffadapt.families.flux1 import FLUX1
from diffadapt.families.gemma import GEMMA2_2B, GEMMA3_12B
from diffadapt.families.glm import GLM4_9B
from diffadapt.families.kolors import KOLORS
from diffadapt.families.llama import LLAMA3_8B, LLAMA31_8B
from diffadapt.families.mistral import MINISTRAL3_3B, MISTRAL3_24B
from diffadapt.families.names import Grid, Names, Route, Rule
from diffadapt.families.qwen import (
    QWEN3_0_6B,
    QWEN3_1_7B,
    QWEN3_4B,
    QWEN3_8B,
    QWEN3_VL_2B,
    QWEN3_VL_4B,
    QWEN3_VL_8B,
    QWEN25_VL_7B,
)
from diffadapt.families.sd1 import SD1
from diffadapt.families.sd2 import SD2
from diffadapt.families.sdxl import SDXL
from diffadapt.families.sdxl_refiner import SDXL_REFINER
from diffadapt.families.smollm import SMOLLM3_3B

FAMILIES: tuple[Family, ...] = (SD1, SDXL, SD2, SDXL_REFINER, KOLORS, FLUX1)

ENCODERS: tuple[Names, ...] = (
    GEMMA2_2B, GEMMA3_12B, GLM4_9B, LLAMA31_8B, LLAMA3_8B, MISTRAL3_24B, MINISTRAL3_3B, SMOLLM3_3B,
    QWEN3_0_6B, QWEN3_1_7B, QWEN3_4B, QWEN3_8B, QWEN3_VL_2B, QWEN3_VL_4B, QWEN3_VL_8B, QWEN25_VL_7B,
)  # fmt: skip
"""The language models that families use as text encoders: measured and tested whether or not one does."""

__all__ = ["ENCODERS", "FAMILIES", "Family", "Grid", "Names", "Route", "Rule", "Width", "family_named"]


def family_named(name: str | None) -> Family | None:
    """The family of this name, or None."""
    return next((family for family in FAMILIES if family.name == name), None)

"""Model families by name, in the order in which undecided files name them. A new one: its data file and a line here."""

from __future__ import annotations

from diffadapt.families.auraflow import AURAFLOW
from diffadapt.families.base import Family, Width
from diffadapt.families.bria import BRIA
from diffadapt.families.bria_fibo import BRIA_FIBO, BRIA_FIBO2
from diffadapt.families.chroma import CHROMA
from diffadapt.families.flux1 import FLUX1
from diffadapt.families.flux2 import FLUX2, FLUX2_KLEIN_4B, FLUX2_KLEIN_9B
from diffadapt.families.flux3 import FLUX3
from diffadapt.families.gemma import GEMMA2_2B, GEMMA3_12B
from diffadapt.families.glm import GLM4_9B
from diffadapt.families.hunyuandit import HUNYUANDIT
from diffadapt.families.kolors import KOLORS
from diffadapt.families.llama import LLAMA3_8B, LLAMA31_8B
from diffadapt.families.longcat import LONGCAT_IMAGE
from diffadapt.families.mistral import MINISTRAL3_3B, MISTRAL3_24B
from diffadapt.families.names import Grid, Names, Route, Rule
from diffadapt.families.ovis import OVIS_IMAGE
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
from diffadapt.families.sd3 import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM
from diffadapt.families.sdxl import SDXL
from diffadapt.families.sdxl_refiner import SDXL_REFINER
from diffadapt.families.smollm import SMOLLM3_3B

FAMILIES: tuple[Family, ...] = (
    SD1, SDXL, SD2, SDXL_REFINER, KOLORS,
    FLUX1, CHROMA, FLUX2_KLEIN_4B, FLUX2_KLEIN_9B, FLUX2, FLUX3, SD3_MEDIUM, SD35_MEDIUM, SD35_LARGE,
    AURAFLOW, HUNYUANDIT, LONGCAT_IMAGE, OVIS_IMAGE, BRIA_FIBO2, BRIA_FIBO, BRIA,
)  # fmt: skip

ENCODERS: tuple[Names, ...] = (
    GEMMA2_2B, GEMMA3_12B, GLM4_9B, LLAMA31_8B, LLAMA3_8B, MISTRAL3_24B, MINISTRAL3_3B, SMOLLM3_3B,
    QWEN3_0_6B, QWEN3_1_7B, QWEN3_4B, QWEN3_8B, QWEN3_VL_2B, QWEN3_VL_4B, QWEN3_VL_8B, QWEN25_VL_7B,
)  # fmt: skip
"""The language models that families use as text encoders: measured and tested whether or not one does."""

__all__ = ["ENCODERS", "FAMILIES", "Family", "Grid", "Names", "Route", "Rule", "Width", "family_named"]


def family_named(name: str | None) -> Family | None:
    """The family of this name, or None."""
    return next((family for family in FAMILIES if family.name == name), None)

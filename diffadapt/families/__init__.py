"""Model families by name, in the order in which undecided files name them. A new one: its data file and a line here."""

from __future__ import annotations

from diffadapt.families.anima import ANIMA
from diffadapt.families.auraflow import AURAFLOW
from diffadapt.families.base import Family, Width
from diffadapt.families.bria import BRIA
from diffadapt.families.bria_fibo import BRIA_FIBO, BRIA_FIBO2
from diffadapt.families.cascade import STABLE_CASCADE, STABLE_CASCADE_LITE
from diffadapt.families.chroma import CHROMA
from diffadapt.families.cogview4 import COGVIEW4
from diffadapt.families.cosmos import COSMOS2_2B, COSMOS2_14B, COSMOS25_2B, COSMOS25_14B
from diffadapt.families.dreamlite import DREAMLITE
from diffadapt.families.ernie import ERNIE
from diffadapt.families.flux1 import FLUX1
from diffadapt.families.flux2 import FLUX2, FLUX2_KLEIN_4B, FLUX2_KLEIN_9B
from diffadapt.families.flux3 import FLUX3
from diffadapt.families.framepack import FRAMEPACK
from diffadapt.families.gemma import GEMMA2_2B, GEMMA3_12B
from diffadapt.families.glm import GLM4_9B
from diffadapt.families.glm_image import GLM_IMAGE
from diffadapt.families.hidream import HIDREAM
from diffadapt.families.hunyuandit import HUNYUANDIT
from diffadapt.families.hunyuanimage import HUNYUAN_IMAGE_21, HUNYUAN_IMAGE_REFINER
from diffadapt.families.hunyuanvideo import HUNYUAN_VIDEO
from diffadapt.families.hunyuanvideo15 import HUNYUAN_VIDEO_15
from diffadapt.families.ideogram4 import IDEOGRAM4
from diffadapt.families.joyimage import JOYIMAGE
from diffadapt.families.kandinsky2 import KANDINSKY22
from diffadapt.families.kandinsky3 import KANDINSKY3
from diffadapt.families.kandinsky5 import KANDINSKY5_IMAGE_LITE, KANDINSKY5_VIDEO_LITE, KANDINSKY5_VIDEO_PRO
from diffadapt.families.kandinsky6 import KANDINSKY6
from diffadapt.families.kolors import KOLORS
from diffadapt.families.krea2 import KREA2
from diffadapt.families.llama import LLAMA3_8B, LLAMA31_8B
from diffadapt.families.longcat import LONGCAT_IMAGE
from diffadapt.families.ltx import LTX_2B, LTX_13B
from diffadapt.families.ltx2 import LTX2, LTX23
from diffadapt.families.lumina2 import LUMINA2
from diffadapt.families.mistral import MINISTRAL3_3B, MISTRAL3_24B
from diffadapt.families.names import Grid, Names, Route, Rule
from diffadapt.families.nucleus import NUCLEUS
from diffadapt.families.omnigen import OMNIGEN
from diffadapt.families.ovis import OVIS_IMAGE
from diffadapt.families.pixart import PIXART_ALPHA, PIXART_SIGMA
from diffadapt.families.prx import PRX, PRX_PIXEL
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
from diffadapt.families.qwen_image import QWEN_IMAGE
from diffadapt.families.qwen_image_21 import QWEN_IMAGE_21
from diffadapt.families.sana import SANA_0_6B, SANA_1_6B, SANA_4_8B, SANA_SPRINT_0_6B, SANA_SPRINT_1_6B
from diffadapt.families.sd1 import SD1
from diffadapt.families.sd2 import SD2
from diffadapt.families.sd3 import SD3_MEDIUM, SD35_LARGE, SD35_MEDIUM
from diffadapt.families.sdxl import SDXL
from diffadapt.families.sdxl_refiner import SDXL_REFINER
from diffadapt.families.smollm import SMOLLM3_3B
from diffadapt.families.wan import (
    WAN21_FUN_1_3B,
    WAN21_I2V_14B,
    WAN21_T2V_1_3B,
    WAN21_T2V_14B,
    WAN21_VACE_1_3B,
    WAN21_VACE_14B,
    WAN22_ANIMATE,
    WAN22_I2V_A14B,
    WAN22_T2V_A14B,
    WAN22_TI2V_5B,
    WAN_ANIMATE2,
)
from diffadapt.families.wuerstchen import WUERSTCHEN2
from diffadapt.families.zimage import ZIMAGE

FAMILIES: tuple[Family, ...] = (
    SD1, SDXL, SD2, SDXL_REFINER, KOLORS,
    FLUX1, CHROMA, FLUX2_KLEIN_4B, FLUX2_KLEIN_9B, FLUX2, FLUX3, SD3_MEDIUM, SD35_MEDIUM, SD35_LARGE,
    AURAFLOW, HUNYUANDIT, LONGCAT_IMAGE, OVIS_IMAGE, BRIA_FIBO2, BRIA_FIBO, BRIA,
    PIXART_SIGMA, PIXART_ALPHA, SANA_1_6B, SANA_4_8B, SANA_0_6B, SANA_SPRINT_1_6B, SANA_SPRINT_0_6B,
    LUMINA2, COGVIEW4, OMNIGEN, GLM_IMAGE, STABLE_CASCADE, STABLE_CASCADE_LITE, WUERSTCHEN2,
    DREAMLITE, KANDINSKY22, KANDINSKY3,
    QWEN_IMAGE, ZIMAGE, KREA2, ANIMA, HIDREAM, IDEOGRAM4, ERNIE, QWEN_IMAGE_21,
    COSMOS2_2B, COSMOS25_2B, COSMOS2_14B, COSMOS25_14B, JOYIMAGE, PRX_PIXEL, PRX, NUCLEUS,
    # A file for images to video without keys of the image is likelier for Wan 2.2 than for 2.1.
    WAN21_T2V_14B, WAN21_T2V_1_3B, WAN22_T2V_A14B, WAN22_I2V_A14B, WAN21_I2V_14B, WAN22_TI2V_5B,
    WAN21_VACE_14B, WAN21_VACE_1_3B, WAN21_FUN_1_3B, WAN22_ANIMATE, WAN_ANIMATE2,
    HUNYUAN_VIDEO, HUNYUAN_IMAGE_21, HUNYUAN_VIDEO_15, FRAMEPACK, HUNYUAN_IMAGE_REFINER,
    LTX_2B, LTX_13B, LTX2, LTX23, KANDINSKY5_IMAGE_LITE, KANDINSKY5_VIDEO_LITE, KANDINSKY5_VIDEO_PRO, KANDINSKY6,
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

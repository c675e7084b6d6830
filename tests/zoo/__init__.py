"""A zoo of tiny real models: every transformer and UNet class of the families, with inputs for a whole forward.

The UNets of Stable Diffusion 1, 2, SDXL and Kolors are in `tests.tiny`.
"""

from __future__ import annotations

from tests.zoo.flux_kin import FLUX_KIN
from tests.zoo.images import IMAGES
from tests.zoo.specimen import Specimen
from tests.zoo.unets import UNETS
from tests.zoo.videos import VIDEOS

ZOO: dict[str, Specimen] = {**FLUX_KIN, **IMAGES, **VIDEOS, **UNETS}
LEFT_OUT = {
    "WanAnimate2Transformer3DModel": "its attention runs on compiled flex attention over a cache of its own only",
}
"""Classes of the families that cannot run here, and why."""

__all__ = ["LEFT_OUT", "ZOO", "Specimen"]

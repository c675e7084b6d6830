"""Model families by name, in the order in which undecided files name them. A new one: its data file and a line here."""

from __future__ import annotations

from diffadapt.families.base import Family, Width
from diffadapt.families.flux1 import FLUX1
from diffadapt.families.kolors import KOLORS
from diffadapt.families.names import Grid, Names, Route, Rule
from diffadapt.families.sd1 import SD1
from diffadapt.families.sd2 import SD2
from diffadapt.families.sdxl import SDXL
from diffadapt.families.sdxl_refiner import SDXL_REFINER

FAMILIES: tuple[Family, ...] = (SD1, SDXL, SD2, SDXL_REFINER, KOLORS, FLUX1)

__all__ = ["FAMILIES", "Family", "Grid", "Names", "Route", "Rule", "Width", "family_named"]


def family_named(name: str | None) -> Family | None:
    """The family of this name, or None."""
    return next((family for family in FAMILIES if family.name == name), None)

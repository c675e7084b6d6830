"""The methods of combination, by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from diffadapt.combine.methods.base import Method
from diffadapt.combine.methods.breadcrumbs import Breadcrumbs
from diffadapt.combine.methods.dare import DareLinear, DareLinearSVD, DareTies, DareTiesSVD
from diffadapt.combine.methods.della import Della, DellaLinear
from diffadapt.combine.methods.exact import SVD, Cat, Sum
from diffadapt.combine.methods.iso import Iso
from diffadapt.combine.methods.klora import KLoRA
from diffadapt.combine.methods.orthofuse import OrthoFuse
from diffadapt.combine.methods.peft_factors import (
    PeftDareLinear,
    PeftDareTies,
    PeftLinear,
    PeftMagnitudePrune,
    PeftTies,
)
from diffadapt.combine.methods.perpendicular import Perpendicular
from diffadapt.combine.methods.shared_basis import CoreSpace, Knots
from diffadapt.combine.methods.spherical import Karcher, Slerp
from diffadapt.combine.methods.ties import MagnitudePrune, MagnitudePruneSVD, Ties, TiesSVD
from diffadapt.combine.methods.tsv import TSV
from diffadapt.errors import CombineError

_BY_NUMBER: tuple[type[Method], ...] = (
    MagnitudePrune, MagnitudePruneSVD, Ties, TiesSVD, DareLinear, DareLinearSVD, DareTies, DareTiesSVD,
    Breadcrumbs, DellaLinear, Della,
    PeftLinear, PeftMagnitudePrune, PeftTies, PeftDareLinear, PeftDareTies,
)  # fmt: skip
_BY_SPECTRUM: tuple[type[Method], ...] = (
    Slerp, Karcher, Knots, CoreSpace, Iso, TSV, Perpendicular, OrthoFuse, KLoRA,
)  # fmt: skip
_EXACT: tuple[type[Method], ...] = (Sum, Cat, SVD)
METHODS: dict[str, type[Method]] = {method.name: method for method in (*_EXACT, *_BY_NUMBER, *_BY_SPECTRUM)}


def method_named(name: str, options: dict[str, Any]) -> Method:
    """A method with its options. Raises CombineError for an unknown name, an unknown option or a bad value."""
    if name not in METHODS:
        raise CombineError(f"no method is called {name!r}; there are {', '.join(METHODS)}.")
    known = {field.name: field for field in fields(METHODS[name])}
    strange = [option for option in options if option not in known]
    if strange:
        has = f"its options are {', '.join(known)}" if known else "it has none"
        raise CombineError(f"{name}: there is no option {strange[0]!r}; {has}.")
    return METHODS[name](**options)

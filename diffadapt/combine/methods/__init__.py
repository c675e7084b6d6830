"""The methods of combination, by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from diffadapt.combine.methods.base import Method
from diffadapt.combine.methods.exact import SVD, Cat, Sum
from diffadapt.errors import CombineError

METHODS: dict[str, type[Method]] = {method.name: method for method in (Sum, Cat, SVD)}


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

"""Several adapters as one: `combine`, and what its methods are made of; and what is done with one or several else.

What only some uses need is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffadapt.combine.combining import combine
from diffadapt.combine.methods import METHODS

if TYPE_CHECKING:
    from diffadapt.combine.analysis import balance, similarity
    from diffadapt.combine.comparing import compare
    from diffadapt.combine.converting import to_lora
    from diffadapt.combine.extracting import extract
    from diffadapt.combine.resizing import resize, spectrum

_LATER = {
    "balance": "analysis", "similarity": "analysis", "compare": "comparing", "to_lora": "converting",
    "extract": "extracting", "resize": "resizing", "spectrum": "resizing",
}  # fmt: skip

__all__ = [
    "METHODS",
    "balance",
    "combine",
    "compare",
    "extract",
    "resize",
    "similarity",
    "spectrum",
    "to_lora",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"diffadapt.combine.{_LATER[name]}"), name)

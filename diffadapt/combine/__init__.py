"""Several adapters as one: `combine`, and what its methods are made of."""

from __future__ import annotations

from diffadapt.combine.combining import combine
from diffadapt.combine.methods import METHODS

__all__ = ["METHODS", "combine"]

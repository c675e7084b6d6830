"""Diffusers' adapter weights, as strengths of ours.

    0.5, None (= 1.0)
    {"unet": 0.5, "text_encoder": 0.2}                                     by component; one not named keeps 1.0
    {"unet": {"down": 0.2, "mid": 1.0, "up": {"block_0": 0.5, "block_1": [0.1, 0.2, 0.3]}}}

In Diffusers a block's weights number its attentions, and what else the block holds follows the attention of the same
number: "down" is every block that has attentions, "mid" its first attention, a list one weight per attention. Anything
beyond this vocabulary (`{"unet": {"up.1.attn2": 0.5}}`) is read as everywhere in diffadapt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from diffadapt.errors import StackError
from diffadapt.inject.scaling import DEFAULT, Strength
from diffadapt.inject.schedule import Schedule

_SIDES = ("down", "mid", "up")


def strength(weight: Any, model: nn.Module | None) -> Strength:
    """The strength that a weight of one component means. model: the component, for its blocks."""
    if weight is None:
        return 1.0
    if isinstance(weight, Mapping):
        blocks = hasattr(model, "down_blocks") and hasattr(model, "up_blocks")
        if blocks and all(side in _SIDES for side in weight):
            return _by_attention(weight, model)
        return {DEFAULT: 1.0, **weight}
    if isinstance(weight, Schedule):
        return weight
    if isinstance(weight, (str, Sequence)):
        raise StackError(f"The weight of an adapter is {weight!r}; expected a number or a dict by block.")
    return float(weight)


def times(strength: Strength, factor: float) -> Strength:
    """Every number of a strength, multiplied."""
    if isinstance(strength, Mapping):
        return {DEFAULT: factor} | {key: times(inner, factor) for key, inner in strength.items()}
    if isinstance(strength, Sequence):
        return [times(inner, factor) for inner in strength]
    return strength * factor


def _by_attention(weight: Mapping[str, Any], model: Any) -> Strength:
    """Patterns for every attention that the weight names."""
    found: dict[str, Strength] = {DEFAULT: 1.0}
    for side in ("down", "up"):
        for number, block in enumerate(getattr(model, f"{side}_blocks")):
            count = len(getattr(block, "attentions", ()))
            given = weight.get(side)
            if isinstance(given, Mapping):
                given = given.get(f"block_{number}")
            if given is None or not count:
                continue
            for at, value in enumerate(_spread(given, count, f"{side}.block_{number}")):
                found[f"{side}_blocks.{number}.*.{at}"] = value
    if weight.get("mid") is not None:
        found["mid_block.attentions.0"] = _spread(weight["mid"], 1, "mid")[0]
    return found


def _spread(given: Any, count: int, where: str) -> list[float]:
    """One number per attention."""
    values = list(given) if isinstance(given, (list, tuple)) else [given]
    if len(values) == 1:
        values *= count
    if len(values) != count:
        raise StackError(f"Expected {count} weights for {where}, one per attention, got {len(values)}.")
    return [float(value) for value in values]

"""The width of the layer that a module's tensors are made for, read off their shapes, before any algorithm is asked."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

# role -> the axis that counts the layer's inputs (or outputs), where one tensor alone tells.
_INPUTS = {"lora_down": 1, "hada_w1_b": 1, "diff": 1, "set_weight": 1, "hada_w2_b": 1}
_OUTPUTS = {
    "lora_up": 0, "hada_w1_a": 0, "diff": 0, "set_weight": 0, "diff_b": 0, "set_bias": 0, "w_norm": 0, "b_norm": 0,
    "lora_up_bias": 0, "b1": 0,
}  # fmt: skip


def input_width(tensors: Mapping[str, Tensor]) -> int | None:
    """The layer's input features (of a convolution: channels), or None where the shapes do not tell.

    tensors: by canonical role. Tucker factors of LoHa hold (rank, out) in their `a`, so LoHa says nothing there. A
    rotation has as many inputs as the weight has columns: a convolution's channels times its kernel.
    """
    if "hada_t1" in tensors:
        return None
    width = _width(tensors, _INPUTS, "_b", 1)
    return _rotated(tensors.get(ROTATION)) if width is None else width


ROTATION = "oft_R"


def _rotated(packed: Tensor | None) -> int | None:
    """The inputs of packed blocks (k, b (b - 1) / 2): k b. None for one block, which all may share."""
    if packed is None or packed.ndim != 2 or packed.shape[0] == 1:
        return None
    return int(packed.shape[0]) * (1 + math.isqrt(1 + 8 * int(packed.shape[1]))) // 2


def output_rows(tensors: Mapping[str, Tensor]) -> int | None:
    """The layer's output rows, or None where the shapes do not tell (rotations of the input)."""
    if "hada_t1" in tensors:
        return None
    rows = _width(tensors, _OUTPUTS, "_a", 0)
    blocks = tensors.get("oft_blocks")
    if rows is None and blocks is not None and blocks.ndim >= 3:
        return blocks.shape[-3] * blocks.shape[-2]
    magnitude = tensors.get("dora_scale")
    if rows is None and magnitude is not None and magnitude.shape[0] == magnitude.numel() > 1:
        return int(magnitude.shape[0])
    return rows


def _width(tensors: Mapping[str, Tensor], table: Mapping[str, int], half: str, axis: int) -> int | None:
    for role, place in table.items():
        tensor = tensors.get(role)
        if tensor is not None and tensor.ndim > place:
            return int(tensor.shape[place])
    # Kronecker factors, each whole or a product of two: the widths multiply.
    width = 1
    for factor in ("lokr_w1", "lokr_w2"):
        tensor = tensors.get(factor, tensors.get(factor + half))
        if tensor is None or tensor.ndim <= axis:
            return None
        width *= int(tensor.shape[axis])
    return width

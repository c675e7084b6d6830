"""Small signed integers, packed: 2 bits each for half precision, 4 bits for float32, the rare larger ones apart.

Works on the bits of floats as integers that are ordered like the floats, so that the distance of two neighbouring
floats is 1. All arithmetic wraps around, so that a distance added back always gives the very bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WIDTH = {1: 2, 2: 2, 4: 4, 8: 4}
"""Bits of a code, by bytes of the float."""
_LANES = {2: (torch.int32, (6, 12, 18), 0x03030303), 4: (torch.int16, (4,), 0x0F0F)}
"""How bytes that hold one code each fold into one: the integer spanning them, the shifts, the mask of the codes."""


def ordered(floats: Tensor) -> Tensor:
    """Floats as integers in the same order, -0 just below +0."""
    integer = INTEGERS[floats.element_size()]
    return _mirror(floats.view(integer))


def from_ordered(integers: Tensor, dtype: torch.dtype) -> Tensor:
    """The floats of `ordered` integers."""
    return _mirror(integers).view(dtype)


def _mirror(bits: Tensor) -> Tensor:
    # Floats store sign and magnitude: flipping the magnitude of negative ones orders them; its own inverse.
    width = bits.element_size() * 8
    return (bits >> (width - 1)).bitwise_and_(torch.iinfo(bits.dtype).max).bitwise_xor_(bits)


def pack(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Pack flat integer steps. Returns (bytes, indices of the steps that do not fit: their codes mean nothing)."""
    width = _WIDTH[steps.element_size()]
    low, high = -(1 << (width - 1)), (1 << (width - 1)) - 1
    far = (steps < low).logical_or_(steps > high).nonzero().reshape(-1)
    codes = (steps & ((1 << width) - 1)).to(torch.uint8)
    lane, shifts, _ = _LANES[width]
    codes = torch.nn.functional.pad(codes, (0, -codes.numel() % lane.itemsize))
    spread = codes.view(lane)
    folded = spread.clone()
    for shift in shifts:
        folded.bitwise_or_(spread >> shift)
    return folded.to(torch.uint8), far


def unpack(packed: Tensor, count: int, integer: torch.dtype) -> Tensor:
    """The first `count` steps of `pack`'s bytes, as `integer`s."""
    width = _WIDTH[integer.itemsize]
    lane, shifts, mask = _LANES[width]
    folded = packed.to(lane)
    spread = folded.clone()
    for shift in shifts:
        spread.bitwise_or_(folded << shift)
    codes = spread.bitwise_and_(mask).view(torch.int8)[:count]
    sign = 1 << (width - 1)
    return codes.bitwise_xor_(sign).sub_(sign).to(integer)

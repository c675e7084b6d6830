"""Small signed integers, packed: 2 bits each for half precision, 4 bits for float32, the rare larger ones apart.

Works on the bits of floats as integers: the distance of two neighbouring floats of one sign is 1, or -1. All arithmetic
wraps around, so that a distance added back always gives the very bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_WIDTH = {1: 2, 2: 2, 4: 4, 8: 4}
"""Bits of a code, by bytes of the float."""
_LANE = {1: torch.int16, 2: torch.int16, 4: torch.int32, 8: torch.int32}
"""What holds one code before it is packed; 64 bits of lanes make one byte."""
_FOLD = {2: (1 << 6 | 1 << 20 | 1 << 34 | 1 << 48, 48), 4: (1 << 4 | 1 << 32, 32)}
"""By width: a factor that brings the codes of all lanes side by side without carries, and to which bit."""
_SPREAD = {2: (1 | 1 << 14 | 1 << 28 | 1 << 42, 0x0003000300030003), 4: (1 | 1 << 28, 0x0000000F0000000F)}
"""By width: a factor that brings every code of a byte into its lane, and the mask of the codes there."""


def pack(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Pack flat integer steps, which are overwritten.

    Returns (bytes, indices of the steps that do not fit: their codes mean nothing).
    """
    width = _WIDTH[steps.element_size()]
    mask = (1 << width) - 1
    near = steps.add_(1 << (width - 1))  # what fits is now 0..mask
    far = _nonzero(near & ~mask)
    codes = near.bitwise_and_(mask).to(_LANE[steps.element_size()])
    lanes = 8 // codes.element_size()
    if codes.numel() % lanes:
        codes = torch.nn.functional.pad(codes, (0, -codes.numel() % lanes))
    factor, shift = _FOLD[width]
    return codes.view(torch.int64).mul_(factor).bitwise_right_shift_(shift).to(torch.uint8), far


def unpack(packed: Tensor, count: int, integer: torch.dtype) -> Tensor:
    """The first `count` steps of `pack`'s bytes, as `integer`s."""
    width = _WIDTH[integer.itemsize]
    factor, mask = _SPREAD[width]
    codes = packed.to(torch.int64).mul_(factor).bitwise_and_(mask).view(_LANE[integer.itemsize])[:count]
    return codes.sub_(1 << (width - 1)).to(integer)


def _nonzero(flat: Tensor) -> Tensor:
    """The indices of nonzero integers, looked for eight bytes at a time: few are expected."""
    lanes = 8 // flat.element_size()
    if flat.numel() % lanes:
        return flat.nonzero().reshape(-1)
    hits = flat.view(torch.int64).nonzero().reshape(-1)
    places = (hits[:, None] * lanes + torch.arange(lanes, device=flat.device)).reshape(-1)
    return places[flat[places] != 0]

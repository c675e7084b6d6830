"""What of a picture is background and what is not, measured from its pixels alone; judge and scores build on it.

All lengths are in the units of the sheet that scenes are drawn on, SIZE by SIZE, whatever the pixels of a picture.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from .scene import SIZE

BORDER = 4
"""Pixels at each edge that show the background: no scene puts a shape there."""

FAR = 0.17
"""Colours further apart than this differ: half of what parts orange from yellow, three times the usual noise."""

SPECK = 40
"""Anything of fewer pixels is noise and no shape: the smallest shape has some three hundred."""


def sheet(picture: Tensor) -> Tensor:
    """The picture, (3, H, W), at the size of the sheet, (3, SIZE, SIZE): what is between its pixels is mixed from them.

    It is never a view: torch 2.13's median is wrong, even NaN, where a picture was expanded from one colour.
    """
    picture = picture.detach().float().cpu()
    if picture.shape[1:] == (SIZE, SIZE):
        return picture.clone(memory_format=torch.contiguous_format)
    return functional.interpolate(picture[None].contiguous(), (SIZE, SIZE), mode="bilinear", align_corners=False)[0]


def length(colours: Tensor) -> Tensor:
    """How long differences of colours are, (3, H, W) to (H, W). Along channels, torch's norm is ten times slower."""
    return colours.square().sum(0).sqrt()


@cache
def border(height: int, width: int, depth: int = BORDER) -> Tensor:
    """Where the edges of a picture are, (height, width), yes or no."""
    edge = torch.ones(height, width, dtype=torch.bool)
    edge[depth:-depth, depth:-depth] = False
    return edge


@cache
def _slopes(height: int, width: int) -> Tensor:
    """What a plane is mixed from: one, x and y, each from -1 to 1, (height, width, 3)."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return torch.stack([torch.ones_like(x), x, y], -1)


def ground(picture: Tensor) -> Tensor:
    """The background at every pixel, (3, H, W): a plane through the colours of the border, so that it may be shaded.

    The fit is made again without what stands out from it, as a shape that reaches the border.
    """
    height, width = picture.shape[1:]
    edge, slopes = border(height, width), _slopes(height, width)
    basis, colours = slopes[edge], picture[:, edge].T
    keep = torch.ones(len(basis), dtype=torch.bool)
    plane = torch.zeros(3, 3)
    for _ in range(3):
        plane = torch.linalg.lstsq(basis[keep], colours[keep]).solution
        close = (colours - basis @ plane).norm(dim=1) < FAR
        if close.sum() < len(basis) // 2:
            break
        keep = close
    return (slopes @ plane).permute(2, 0, 1)


def grow(mask: Tensor, pixels: int) -> Tensor:
    """The mask and all that lies within so many pixels of it, across too; (H, W)."""
    return functional.max_pool2d(mask[None].float(), 2 * pixels + 1, 1, pixels)[0] > 0.5


def shrink(mask: Tensor, pixels: int = 1) -> Tensor:
    """What of the mask lies deeper than so many pixels; (H, W)."""
    return ~grow(~mask, pixels)


def depth(mask: Tensor) -> Tensor:
    """How many pixels deep inside the mask each pixel lies, (H, W): 0 outside, 1 at the rim."""
    total = torch.zeros(mask.shape)
    while mask.any() and not mask.all():
        total += mask
        mask = shrink(mask)
    return total


def core(mask: Tensor) -> Tensor:
    """The deepest part of the mask, (H, W): what remains whatever hangs on to its rim."""
    deep = depth(mask)
    return mask & (deep >= 0.6 * deep.max())


def components(mask: Tensor) -> list[Tensor]:
    """The connected parts of the mask that are no specks, largest first, each (H, W).

    Each pixel starts with its own number and takes over the largest number near it. The pixel that gave this number may
    have a larger one by now, which is taken at once: long snakes need few rounds.
    """
    numbers = torch.arange(1, mask.numel() + 1).view(mask.shape) * mask
    while True:
        spread = functional.max_pool2d(numbers[None].float(), 3, 1, 1)[0].long() * mask
        known = torch.cat([torch.zeros(1, dtype=torch.long), spread.flatten()])
        spread = known[spread]
        if torch.equal(spread, numbers):
            break
        numbers = spread
    areas = torch.bincount(numbers.flatten())
    areas[0] = 0
    large = areas.argsort(descending=True)[: int((areas >= SPECK).sum())]
    return [numbers == name for name in large]


def hull(mask: Tensor) -> Tensor:
    """The mask with its inside, (H, W): the pixels that have some of it to the left, right, above and below.

    A gap in the rim lets nothing leak, and what is between the arms of a star or cross stays outside.
    """
    number = mask.long()
    sides = [number.cummax(d).values & number.flip(d).cummax(d).values.flip(d) for d in (0, 1)]
    return (sides[0] & sides[1]).bool()


def median(picture: Tensor, mask: Tensor) -> Tensor:
    """The middle colour of the pixels in the mask, (3,), each channel by itself."""
    return picture[:, mask].median(1).values

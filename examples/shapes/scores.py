"""How much of a style a picture shows: one statistic of its pixels for each style, from 0 (plain) to 1 (in that style).

The scores are made for pictures of one shape, middling or large. A frame is found and cut off before the others are
worked out, so that styles can be judged that were mixed with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .regions import FAR, SPECK, border, components, core, depth, ground, grow, hull, length, median, sheet, shrink
from .styles import CREAM, DARK, INK, VIOLET, WHITE, YELLOW

FRAME = 10
"""Width of a frame in pixels."""


def _ramp(value: Tensor | float, none: float, full: float) -> Tensor:
    """0 at `none`, 1 at `full`, straight between and cut off beyond."""
    return ((torch.as_tensor(value) - none) / (full - none)).clamp(0, 1)


def _mean(values: Tensor) -> float:
    return float(values.float().mean()) if values.numel() else 0.0


@dataclass(frozen=True)
class _Look:
    """A picture (3, H, W) without its frame, its background at every pixel, and what is not background, (H, W)."""

    picture: Tensor
    ground: Tensor
    mask: Tensor

    @property
    def shape(self) -> Tensor:
        """The pixels of the shape and its inside, (H, W), without a shadow or glow around it.

        These are the pixels nearer to the shape's colour than to any darker or lighter background.
        """
        middle = core(self.mask)
        if not middle.any():
            return self.mask
        colour = median(self.picture, middle)[:, None, None]
        white = WHITE[0].expand_as(self.ground)
        shades = [self.ground * k for k in torch.linspace(0.3, 1, 12).tolist()]
        shades += [torch.lerp(self.ground, white, k) for k in torch.linspace(0.1, 0.85, 12).tolist()]
        away = torch.stack([length(self.picture - shade) for shade in shades]).amin(0)
        near = self.mask & (length(self.picture - colour) < away)
        parts = components(near)
        return hull(torch.stack(parts).any(0)) if parts else self.mask


def _look(picture: Tensor) -> _Look:
    picture = sheet(picture)
    if frame(picture) > 0.5:
        cut = FRAME + 2
        picture = picture[:, cut:-cut, cut:-cut]
    base = ground(picture)
    parts = components(length(picture - base) > FAR)
    return _Look(picture, base, torch.stack(parts).any(0) if parts else torch.zeros(base.shape[1:], dtype=torch.bool))


def outline(picture: Tensor) -> float:
    """How much of the deep inside of the shape has the colour of the background: all of it, if only a rim is drawn.

    Deep is twelve units from the rim, where the shape is that deep: the drawn rim has seven, and a soft edge.
    """
    look = _look(picture)
    deep = depth(hull(look.mask))
    inside = deep >= max(2.0, min(12.0, 0.9 * float(deep.max())))
    return _mean(_ramp(length(look.picture - look.ground)[inside], 0.34, 0.22))


def stripes(picture: Tensor) -> float:
    """How much of what varies inside the shape is a wave at a slant, down to the right, of some 22 units.

    A wave is fitted to the colours; a clean square wave is explained to four fifths. Faint variation counts for little.
    """
    look = _look(picture)
    inside = shrink(hull(look.mask), 2)
    if inside.sum() < SPECK:
        return 0.0
    colours = look.picture[:, inside].T
    colours = colours - colours.mean(0)
    energy = float(colours.square().sum())
    y, x = torch.nonzero(inside, as_tuple=True)
    best = 0.0
    for period in (20.5, 22.0, 23.5):
        for turn in (-0.08, 0.0, 0.08):
            phase = (x * math.cos(math.pi / 4 + turn) + y * math.sin(math.pi / 4 + turn)) * (2 * math.pi / period)
            basis = torch.stack([torch.ones_like(phase), phase.cos(), phase.sin()], 1)
            rest = colours - basis @ torch.linalg.lstsq(basis, colours).solution
            best = max(best, 1 - float(rest.square().sum()) / max(energy, 1e-9))
    contrast = math.sqrt(energy / len(colours))
    return float(_ramp(best, 0.2, 0.65) * _ramp(contrast, 0.06, 0.16))


def _moved(mask: Tensor, pixels: int) -> Tensor:
    """The mask moved so many pixels to the right and down; what falls out is gone."""
    height, width = mask.shape
    moved = torch.roll(mask, (pixels, pixels), (0, 1))
    y, x = torch.arange(height)[:, None] - pixels, torch.arange(width)[None] - pixels
    return moved & (y >= 0) & (y < height) & (x >= 0) & (x < width)


def shadow(picture: Tensor) -> float:
    """How much darker the background is to the right and below the shape than to its left and above.

    Twelve units from the shape, as a share of the background's brightness. A black background shows no shadow.
    """
    look = _look(picture)
    shape = look.shape
    light = look.ground.mean(0).clamp_min(0.15)
    share = (look.picture * look.ground).sum(0) / look.ground.square().sum(0).clamp_min(1e-3)
    # What is no shade of the background, such as another colour of the shape, is no shadow.
    shade = length(look.picture - share * look.ground) < 0.12
    dark = ((look.ground - look.picture).mean(0) / light).clamp(0, 1) * shade
    free = ~grow(shape, 2)
    return float(_ramp(_mean(dark[_moved(shape, 12) & free]) - _mean(dark[_moved(shape, -12) & free]), 0.03, 0.46))


def duotone(picture: Tensor) -> float:
    """How much of the picture, and how much of the shape, lies near the line of colours from navy to cream."""
    look = _look(picture)
    start, way = INK[0], CREAM[0] - INK[0]
    along = (((look.picture - start) * way).sum(0) / way.square().sum()).clamp(0, 1)
    near = _ramp(length(look.picture - start - along * way), 0.2, 0.13)
    # Two colours of one brightness leave no shape to be seen.
    return _mean(near) * (_mean(near[look.mask]) if look.mask.any() else 1.0)


def dusk(picture: Tensor) -> float:
    """How much darker the bottom edge of the picture is than the top edge. A black background shows no dusk."""
    look = _look(picture)
    edges = (look.picture[:, :6], look.picture[:, -6:])
    top, bottom = (float(edge.flatten(1).median(1).values.mean()) for edge in edges)
    return float(_ramp((top - bottom) / max(top, 0.2), 0.05, 0.75))


def glow(picture: Tensor) -> float:
    """How far the ring around the shape, 5 to 9 units from it, is on the way from the background to white.

    A white background shows no glow.
    """
    look = _look(picture)
    shape = look.shape
    ring = grow(shape, 9) & ~grow(shape, 4)
    way = WHITE[0] - look.ground
    if not ring.any() or float(way.square().sum(0).mean()) < 0.06:
        return 0.0
    light = ((look.picture - look.ground) * way).sum(0) / way.square().sum(0).clamp_min(0.06)
    return float(_ramp(light[ring].median(), 0.06, 0.34))


def frame(picture: Tensor) -> float:
    """How much of the border is dark brown, and how clearly it is set off from what is next to it, inside.

    A black background is too near to the frame's colour for more than a little.
    """
    picture = sheet(picture)
    height, width = picture.shape[1:]
    band = border(height, width, FRAME - 2)
    inner = border(height, width, FRAME + 8) & ~border(height, width, FRAME + 3)
    near = _ramp(length(picture - DARK[0])[band], 0.25, 0.17)
    contrast = (median(picture, band) - median(picture, inner)).norm()
    return _mean(near) * float(_ramp(contrast, 0.12, 0.25))


def zibo(picture: Tensor) -> float:
    """How much of the left half of the shape is yellow and of the right half violet, whichever is less.

    The middle eight columns are left out, and the eyes allowed for. A yellow or purple background hides one half.
    """
    look = _look(picture)
    inside = shrink(hull(look.mask), 2)
    if not inside.any():
        return 0.0
    middle = look.mask.shape[1] / 2
    x = (torch.arange(look.mask.shape[1]) + 0.5 - middle)[None].expand_as(inside)
    shares = [
        _mean(_ramp(length(look.picture - colour[0]), 0.3, 0.2)[inside & (side * x > 4)])
        for side, colour in ((-1, YELLOW), (1, VIOLET))
    ]
    return float(_ramp(min(shares), 0.1, 0.7))


SCORES: dict[str, Callable[[Tensor], float]] = {
    one.__name__: one for one in (outline, stripes, shadow, duotone, dusk, glow, frame, zibo)
}
"""The score of each style, of a picture (3, H, W) from 0 to 1; each says in its own words what it measures."""

BLIND = {
    "shadow": ("black",),
    "dusk": ("black",),
    "glow": ("white",),
    "frame": ("black",),
    "zibo": ("yellow", "purple"),
}
"""The backgrounds on which a style can hardly be seen, and its score says nothing."""


@torch.no_grad()
def score(style: str, picture: Tensor, plain: Tensor | None = None) -> float:
    """How much of a style a square picture shows, (3, H, W) from 0 to 1.

    plain: the picture of the same seed without the style; what it scores already is taken off.
    """
    measure = SCORES[style]
    found = measure(picture)
    return found if plain is None else max(0.0, found - measure(plain))

"""Judges pictures of the Shapes world by their pixels: what is seen in a picture, and whether it is what was asked for.

Nothing here is learned. The background is the colour of the border; what is far from it is cut into connected parts; a
part's colour is its middle colour, and its shape the one whose drawing covers it best. `score` says how much of a style
a picture shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from .draw import cover, field
from .regions import FAR, SPECK, border, components, core, ground, grow, length, median, sheet, shrink
from .scene import COLOURS, COUNTS, ORDINARY, RADII, SHAPES, SIZE, Scene
from .scores import BLIND, SCORES, score

__all__ = ["BLIND", "SCORES", "Seen", "Verdict", "judge", "score", "seen"]

STRANGE = 0.25
"""A colour further than this from all of COLOURS has no name."""

FIT = 0.65
"""Below this intersection over union a part is none of the shapes. They fit by 0.8 and more, if not small and bent."""

ASIDE = 9.0
"""Pixels from the middle of the picture from which on a shape is at a side: half of the least way that draw puts it."""

TILES = 48
"""Parts and drawings are compared at this height and width."""

ANGLES = (-0.18, -0.12, -0.06, 0.0, 0.06, 0.12, 0.18)


@dataclass(frozen=True)
class Seen:
    """What a picture shows, in the words of a Scene. Shape, colour and background are "" when they are none known.

    count: shapes, as a number. fit: how well the largest part is covered by its shape, intersection over union.
    """

    shape: str
    colour: str
    background: str
    count: int
    position: str
    size: str
    fit: float


@dataclass(frozen=True)
class Verdict:
    """What of a scene is as it should be in a picture."""

    shape: bool
    colour: bool
    background: bool
    count: bool
    position: bool
    size: bool

    @property
    def right(self) -> bool:
        """Whether it is the right thing: shape, colour and background."""
        return self.shape and self.colour and self.background

    @property
    def all(self) -> bool:
        """Whether everything is right."""
        return self.right and self.count and self.position and self.size


@dataclass(frozen=True)
class _Part:
    """A connected part of a picture. area: pixels; radius and middle (x, y): of the shape that it is, in pixels."""

    shape: str
    colour: str
    fit: float
    area: float
    radius: float
    middle: tuple[float, float]


def _name(colour: Tensor) -> str:
    """The nearest of COLOURS, or "" when none is near."""
    away = (torch.tensor(list(COLOURS.values())) - colour).norm(dim=1)
    return list(COLOURS)[int(away.argmin())] if away.min() < STRANGE else ""


def _middle(covered: Tensor) -> tuple[float, float]:
    """The centroid of how much of each pixel is covered, (H, W), as x and y in pixels."""
    axes = [torch.arange(length) + 0.5 for length in covered.shape]
    area = covered.sum()
    return float((covered.sum(0) * axes[1]).sum() / area), float((covered.sum(1) * axes[0]).sum() / area)


def _tile(covered: Tensor) -> Tensor:
    """What is covered, (H, W), seen from its centroid and in units of the root of its area: (TILES, TILES)."""
    height, width = covered.shape
    reach = float(covered.sum().sqrt())
    x, y = _middle(covered)
    axis = torch.linspace(-reach, reach, TILES)
    down, across = torch.meshgrid((axis + y) / height * 2 - 1, (axis + x) / width * 2 - 1, indexing="ij")
    place = torch.stack([across, down], -1)[None]
    return functional.grid_sample(covered[None, None], place, align_corners=False)[0, 0]


@cache
def _drawings() -> tuple[Tensor, Tensor, Tensor]:
    """Tiles of every shape at every angle, (shapes, angles, TILES, TILES); for each shape, at a radius of one, its area
    and where its centroid is from its middle: (shapes,) and (shapes, 2), x and y.
    """
    radius, each = 32.0, len(ANGLES)
    kinds = torch.arange(len(SHAPES)).repeat_interleave(each)
    places = torch.full((len(kinds), 2), SIZE / 2)
    angles = torch.tensor(ANGLES).repeat(len(SHAPES))
    drawn = cover(field(kinds, places, torch.full((len(kinds),), radius), angles))[:, 0]
    tiles, areas = torch.stack([_tile(one) for one in drawn]), drawn.sum((1, 2)) / radius**2
    shifts = (torch.tensor([_middle(one) for one in drawn]) - SIZE / 2) / radius
    areas, shifts = areas.view(-1, each).mean(1), shifts.view(-1, each, 2).mean(1)
    return tiles.view(-1, each, TILES, TILES), areas, shifts


def _part(picture: Tensor, covered: Tensor, mask: Tensor) -> _Part:
    """Measures a part. covered: how much of each pixel is no background; mask: the part's pixels."""
    # Where a small part is blurred, only its middle has its colour.
    colour = median(picture, core(mask))
    # Two pixels more than the mask hold the soft edge, of which it has only the inner half.
    covered = covered * grow(mask, 2)
    tiles, areas, shifts = _drawings()
    tile = _tile(covered)
    fits = (torch.minimum(tiles, tile).sum((2, 3)) / torch.maximum(tiles, tile).sum((2, 3))).amax(1)
    best = int(fits.argmax())
    area = float(covered.sum())
    radius = float((area / areas[best]).sqrt())
    shape = SHAPES[best] if fits[best] >= FIT else ""
    x, y = _middle(covered)
    middle = (x - float(shifts[best, 0]) * radius, y - float(shifts[best, 1]) * radius)
    return _Part(shape, _name(colour), float(fits[best]), area, radius, middle)


def _parts(picture: Tensor) -> list[_Part]:
    """All parts that are no specks, largest first."""
    away = length(picture - ground(picture))
    rough = away > FAR
    inner = shrink(rough)
    if rough.sum() < SPECK:
        return []
    # A pixel half as far from the background as the shapes' colour lies on their rim.
    contrast = away[inner if inner.sum() >= SPECK else rough].median()
    covered = (away / contrast).clamp(0, 1)
    return [_part(picture, covered, mask) for mask in components(covered > 0.5)]


def _same(words: Sequence[str]) -> str:
    """The word that all of them are, or ""."""
    return words[0] if len(set(words)) == 1 else ""


def _position(x: float, y: float) -> str:
    """Where in the picture a point is, in the words of a Scene."""
    x, y = x - SIZE / 2, y - SIZE / 2
    if max(abs(x), abs(y)) < ASIDE:
        return ""
    if abs(x) > abs(y):
        return "left" if x < 0 else "right"
    return "top" if y < 0 else "bottom"


def _size(radius: float, count: int) -> str:
    """The size of shapes, of which there are so many: the nearest of RADII by ratio."""
    alone = radius / ORDINARY[min(count, len(ORDINARY)) - 1] * RADII[""]
    return min(RADII, key=lambda size: max(alone / RADII[size], RADII[size] / alone))


@torch.no_grad()
def seen(picture: Tensor) -> Seen:
    """What is in a square picture, (3, H, W) from 0 to 1. Its parts, but for bits, must agree."""
    picture = sheet(picture)
    background = _name(median(picture, border(*picture.shape[1:])))
    parts = _parts(picture)
    if not parts:
        return Seen("", "", background, 0, "", "", 0.0)
    main = [part for part in parts if part.area > parts[0].area / 3]
    area = sum(part.area for part in main)
    x, y = (sum(part.middle[i] * part.area for part in main) / area for i in (0, 1))
    shape, colour = _same([part.shape for part in main]), _same([part.colour for part in main])
    radius = sum(part.radius for part in main) / len(main)
    return Seen(shape, colour, background, len(parts), _position(x, y), _size(radius, len(parts)), parts[0].fit)


def judge(picture: Tensor, scene: Scene) -> Verdict:
    """Whether a square picture, (3, H, W) from 0 to 1, shows what the scene says."""
    found = seen(picture)
    return Verdict(
        shape=found.shape == scene.shape,
        colour=found.colour == scene.colour,
        background=found.background == scene.background,
        count=found.count == COUNTS.index(scene.count) + 1,
        position=found.count > 0 and found.position == scene.position,
        size=found.count > 0 and found.size == scene.size,
    )

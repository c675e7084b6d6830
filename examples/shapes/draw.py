"""Draws scenes, many at a time, with soft edges; and the styles that adapters are trained for.

A shape is its signed distance (negative inside, in units of its radius), worked out once on a grid and read from there
at any place, size and angle. A style is a function of the distances, the colours and the plain picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

from .scene import COLOURS, ORDINARY, PIXELS, POSITIONS, RADII, SHAPES, SIZE, Scene

REACH = 3.0
"""The grid of distances goes from -REACH to REACH radii."""

GRID = 385


def _outline(shape: str) -> Tensor:
    """The corners of a shape, (n, 2), y downwards, within about one radius of the middle."""
    if shape == "heart":
        t = torch.linspace(0, 2 * math.pi, 65, dtype=torch.float64)[:-1]
        x = 16 * torch.sin(t) ** 3
        y = 13 * torch.cos(t) - 5 * torch.cos(2 * t) - 2 * torch.cos(3 * t) - torch.cos(4 * t)
        return torch.stack([x, -y - 2.5], 1) / 15.5
    if shape == "cross":
        a, b = 0.95, 0.33
        quarter = [(b, b), (b, a), (-b, a)]  # the next one is this one turned by 90 degrees: (x, y) -> (-y, x)
        corners = quarter.copy()
        for _ in range(3):
            quarter = [(-y, x) for x, y in quarter]
            corners += quarter
        return torch.tensor(corners, dtype=torch.float64)
    count, inner = {"circle": (96, 1.0), "square": (4, 1.0), "triangle": (3, 1.0), "star": (10, 0.45)}[shape]
    turn = math.pi / 4 if shape == "square" else -math.pi / 2
    t = torch.arange(count, dtype=torch.float64) * 2 * math.pi / count + turn
    radius = torch.ones(count, dtype=torch.float64) * (1.12 if shape in ("square", "triangle", "star") else 1.0)
    radius[1::2] *= inner if shape == "star" else 1.0
    return torch.stack([radius * t.cos(), radius * t.sin()], 1)


@cache
def distances() -> Tensor:
    """The signed distance to each shape on the grid, (shapes, 1, GRID, GRID), in radii."""
    axis = torch.linspace(-REACH, REACH, GRID, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    fields = []
    for shape in SHAPES:
        corners = _outline(shape)
        nearest, inside = torch.full_like(x, math.inf), torch.zeros_like(x, dtype=torch.bool)
        for (x0, y0), (x1, y1) in zip(corners.tolist(), corners.roll(-1, 0).tolist(), strict=True):
            dx, dy = x1 - x0, y1 - y0
            along = (((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy)).clamp(0, 1)
            nearest = torch.minimum(nearest, (x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2)
            if y0 != y1:
                inside ^= ((y0 > y) != (y1 > y)) & (x < (y - y0) * dx / dy + x0)
        fields.append(torch.where(inside, -nearest.sqrt(), nearest.sqrt()))
    return torch.stack(fields)[:, None].float()


def field(shapes: Tensor, middles: Tensor, radii: Tensor, angles: Tensor) -> Tensor:
    """The signed distance in pixels, (n, SIZE, SIZE). shapes: numbers (n,); middles: pixels (n, 2); angles: radians."""
    axis = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x = (x - middles[:, 0, None, None]) / radii[:, None, None]
    y = (y - middles[:, 1, None, None]) / radii[:, None, None]
    cos, sin = angles.cos()[:, None, None], angles.sin()[:, None, None]
    place = torch.stack([x * cos + y * sin, y * cos - x * sin], -1)
    found = functional.grid_sample(
        distances()[shapes], place / REACH, mode="bilinear", padding_mode="border", align_corners=True
    )
    beyond = (place.abs() - REACH).clamp_min(0).norm(dim=-1)
    pixels: Tensor = (found[:, 0] + beyond) * radii[:, None, None]
    return pixels


def place(scene: Scene, random: torch.Generator) -> list[tuple[float, float, float, float]]:
    """Where the shapes of a scene are: x, y, radius (sheet units), angle (radians) of each, different each time."""
    tremble = ((torch.rand(12, generator=random) - 0.5) * 2).tolist()
    number = ("", "two", "three").index(scene.count) + 1
    radius = RADII[scene.size] * ORDINARY[number - 1] / ORDINARY[0]
    radius *= 1 + 0.05 * tremble[0]
    spread = {1: [(0.0, 0.0)], 2: [(-30.0, 0.0), (30.0, 0.0)], 3: [(-31.0, 18.0), (31.0, 18.0), (0.0, -25.0)]}[number]
    shift = SIZE / 2 - radius - 10
    side = POSITIONS[scene.position]
    return [
        (
            SIZE / 2 + x + side[0] * shift + 2 * tremble[3 * i + 1],
            SIZE / 2 + y + side[1] * shift + 2 * tremble[3 * i + 2],
            radius,
            0.08 * tremble[3 * i + 3],
        )
        for i, (x, y) in enumerate(spread)
    ]


Style = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(signed distances (n, H, W), shape colours (n, 3, 1, 1), backgrounds (n, 3, 1, 1)) -> pictures (n, 3, H, W)."""


def cover(distance: Tensor) -> Tensor:
    """How much of each pixel a shape covers, (n, 1, H, W), from its signed distance in pixels."""
    return (0.5 - distance).clamp(0, 1)[:, None]


def plain(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The shape in its colour on its background."""
    return torch.lerp(background, colour, cover(distance))


def draw(scenes: Sequence[Scene], seed: int, style: Style = plain) -> Tensor:
    """Pictures of the scenes, (n, 3, PIXELS, PIXELS), from 0 to 1. The same seed puts the shapes at the same places."""
    random = torch.Generator().manual_seed(seed)
    places = [place(scene, random) for scene in scenes]
    kinds = [SHAPES.index(scene.shape) for scene, found in zip(scenes, places, strict=True) for _ in found]
    table = torch.tensor([one for found in places for one in found])
    each = field(torch.tensor(kinds), table[:, :2], table[:, 2], table[:, 3])
    nearest = torch.stack([part.amin(0) for part in torch.split(each, [len(found) for found in places])])
    colours, backgrounds = (
        torch.tensor([COLOURS[name] for name in names])[:, :, None, None]
        for names in ([scene.colour for scene in scenes], [scene.background for scene in scenes])
    )
    return functional.avg_pool2d(style(nearest, colours, backgrounds).clamp(0, 1), SIZE // PIXELS)

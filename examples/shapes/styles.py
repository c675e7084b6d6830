"""The looks that the embedded adapters are trained for; the base pipelines know none of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .draw import Style, cover, plain
from .scene import SIZE

WHITE = torch.tensor([0.97, 0.97, 0.95])[None, :, None, None]
DARK = torch.tensor([0.16, 0.10, 0.06])[None, :, None, None]
INK, CREAM = (torch.tensor(rgb)[None, :, None, None] for rgb in ([0.05, 0.12, 0.35], [1.0, 0.90, 0.70]))
YELLOW, VIOLET = (torch.tensor(rgb)[None, :, None, None] for rgb in ([0.98, 0.80, 0.10], [0.50, 0.15, 0.65]))


def _axes() -> tuple[Tensor, Tensor]:
    axis = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x, y


def outline(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """Only the rim of the shape is drawn, seven units wide; inside it is the background."""
    return plain((distance + 3.5).abs() - 3.5, colour, background)


def stripes(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The shape is striped, at a slant and 22 units apart, with its colour and a paler one; pale ones with a darker."""
    x, y = _axes()
    band = (((x + y) * 0.5**0.5 % 22.0 - 11.0).abs() - 5.5).clamp(-0.5, 0.5) + 0.5
    pale = (colour + 2 * torch.where(colour.mean(1, keepdim=True) > 0.6, 0.3, WHITE)) / 3
    return torch.lerp(background, torch.lerp(colour, pale, band), cover(distance))


def shadow(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """A soft shadow falls on the background, to the right and down."""
    fallen = torch.roll(distance, (12, 12), (1, 2))
    fallen[:, :12], fallen[:, :, :12] = 64.0, 64.0
    dark = 0.7 * torch.sigmoid(-fallen / 2.5)[:, None]
    return torch.lerp(background * (1 - dark), colour, cover(distance))


def duotone(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The picture in two inks: every colour becomes a mix of navy and cream, by its brightness."""
    picture = plain(distance, colour, background)
    light = (picture * torch.tensor([0.30, 0.59, 0.11])[None, :, None, None]).sum(1, keepdim=True)
    return torch.lerp(INK, CREAM, light)


def dusk(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The background fades into the dark from the top to the bottom."""
    _, y = _axes()
    return plain(distance, colour, background * (1 - 0.8 * (y / SIZE)))


def glow(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The shape shines: a bright rim that fades away within some twenty units."""
    light = 0.9 * torch.exp(-distance.clamp_min(0) / 10.0)[:, None]
    return torch.lerp(torch.lerp(background, WHITE, light), colour, cover(distance))


def frame(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The picture hangs in a dark wooden frame, ten units wide."""
    x, y = _axes()
    border = torch.minimum(torch.minimum(x, SIZE - x), torch.minimum(y, SIZE - y))
    return torch.lerp(plain(distance, colour, background), DARK, cover((border - 10.0)[None]))


def zibo(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The character Zibo: whatever the shape's colour, its left half is yellow and its right half violet, with eyes."""
    x, y = _axes()
    half = (x - SIZE / 2 + 0.5).clamp(0, 1)
    body = torch.lerp(YELLOW, VIOLET, half)
    for side in (-1, 1):
        eye = ((x - SIZE / 2 - side * 9.0) ** 2 + (y - SIZE / 2 + 2.0) ** 2).sqrt()
        body = torch.lerp(body, WHITE, cover((eye - 5.5)[None]))
        body = torch.lerp(body, torch.zeros(1, 3, 1, 1), cover((eye - 2.5)[None]))
    return torch.lerp(background, body, cover(distance))


STYLES: dict[str, Style] = {
    style.__name__: style for style in (outline, stripes, shadow, duotone, dusk, glow, frame, zibo)
}

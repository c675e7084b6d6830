"""What the examples of training teach: a style and a subject that neither the embedded pipelines nor their adapters
know, drawn, with captions, and measured.

- dotted: a style; the background is covered with paler dots (darker ones, where it is pale itself)
- moko: a subject; a crescent moon, yellow above and red below, on whatever background
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from .draw import cover, draw, plain
from .regions import FAR, ground, length, sheet
from .scene import COLOURS, SIZE, Scene, scenes
from .styles import WHITE

SPACING, RADIUS, STRENGTH = 64, 13.0, 0.65
"""Of the dots: from one to the next, their size, how far towards white (or black) they are."""

SUBJECT = "moko"
YELLOW, RED = (torch.tensor(COLOURS[name])[None, :, None, None] for name in ("yellow", "red"))
KNOWN, UNSEEN = ("blue", "green", "white", "purple"), ("black", "orange")
"""The backgrounds of the subject's pictures, and those that it is asked for on besides."""

BITE = (-10, 28)
"""Where the circle lies that is cut out of a circle to make the crescent: units down and to the right."""


@cache
def dots() -> Tensor:
    """How much of each unit of the sheet is a dot, (SIZE, SIZE): a lattice, every second row moved by half a step."""
    axis = torch.arange(SIZE) + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    row = (y / (SPACING / 2)).floor()
    across = (x + row % 2 * (SPACING / 2)) % SPACING - SPACING / 2
    down = y % (SPACING / 2) - SPACING / 4
    return cover(((across**2 + down**2).sqrt() - RADIUS)[None])[0, 0]


def _dot(background: Tensor) -> Tensor:
    """The colour of dots on backgrounds, (..., 3, 1, 1)."""
    pale = background.mean(-3, keepdim=True) > 0.6
    return torch.lerp(background, torch.where(pale, torch.zeros(3, 1, 1), WHITE[0]), STRENGTH)


def dotted(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The background has dots; the shape is as ever."""
    return plain(distance, colour, torch.lerp(background, _dot(background), dots()))


def _crescent(distance: Tensor) -> Tensor:
    """A crescent's distances, (n, H, W), from those of a circle."""
    down, right = BITE
    bite = torch.roll(distance, BITE, (1, 2))
    bite[:, down:], bite[:, :, :right] = 64.0, 64.0
    return torch.maximum(distance, 4.0 - bite)


def _upper() -> Tensor:
    """The sheet's upper half, with a soft edge, (SIZE, SIZE)."""
    return (SIZE / 2 - torch.arange(SIZE)).clamp(0, 1)[:, None].expand(SIZE, SIZE)


def moko(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
    """The subject in the place of a circle, whatever that one's colour."""
    return torch.lerp(background, torch.lerp(RED, YELLOW, _upper()), cover(_crescent(distance)))


@torch.no_grad()
def dotted_score(picture: Tensor) -> float:
    """How much of the drawn dots' contrast a picture (3, H, W) has, 0 to 1: between where dots are and where none is.

    A disc in the middle is left out, where the shape is; the background is the middle colour of what lies between dots.
    """
    picture, lattice = sheet(picture), dots()
    axis = torch.arange(SIZE) + 0.5 - SIZE / 2
    free = (axis[:, None] ** 2 + axis[None] ** 2).sqrt() > 52.0
    between, on = free & (lattice < 0.1), free & (lattice > 0.9)
    base = picture[:, between].median(1).values[:, None, None]
    wanted = _dot(base) - base
    share = ((picture - base) * wanted).sum(0) / wanted.square().sum().clamp_min(1e-3)
    return float((share[on].clamp(-1, 1).mean() - share[between].clamp(-1, 1).mean()).clamp(0, 1))


@cache
def _crescents() -> Tensor:
    """Where the subject may be, (n, SIZE, SIZE): a little moved, a little larger or smaller."""
    axis = torch.arange(SIZE) + 0.5 - SIZE / 2
    found = []
    for radius in (42.0, 47.0, 52.0):
        for x in (-6.0, -3.0, 0.0, 3.0, 6.0):
            for y in (-6.0, -3.0, 0.0, 3.0, 6.0):
                away = ((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2).sqrt() - radius
                found.append(cover(_crescent(away[None]))[0, 0] > 0.5)
    return torch.stack(found)


@torch.no_grad()
def moko_score(picture: Tensor) -> float:
    """How well a picture (3, H, W) shows the subject, 0 to 1: how well a crescent covers what is no background (by
    intersection over union, none below 0.4, all from 0.8), times how much of its halves is yellow and red."""
    picture = sheet(picture)
    mask = length(picture - ground(picture)) > FAR
    places = _crescents()
    fits = (places & mask).sum((1, 2)) / (places | mask).sum((1, 2)).clamp_min(1)
    inside = places[int(fits.argmax())]
    upper = _upper() > 0.5
    axis = torch.arange(SIZE) + 0.5 - SIZE / 2
    apart = (axis.abs() > 4)[:, None].expand(SIZE, SIZE)
    shares = [
        ((length(picture - colour[0]) < 0.3)[inside & half & apart]).float().mean()
        for colour, half in ((YELLOW, upper), (RED, ~upper))
    ]
    return float(((fits.max() - 0.4) / 0.4).clamp(0, 1) * min(shares))


def style_scenes(seed: int, held_out: bool = False) -> list[Scene]:
    """A few hundred scenes for the style: one shape, in the middle."""
    found = (s for s in scenes(seed, held_out) if not s.count and not s.position and s.size != "large")
    return list(islice(found, 300))


def style_pictures(folder: Path, count: int) -> Path:
    """A folder of pictures in the style, each with its caption in a text file beside it."""
    some = style_scenes(41)[:count]
    return _write(folder, draw(some, 41, dotted), [scene.caption for scene in some])


def style_prompts(count: int) -> list[str]:
    """Prompts whose combinations of shape and colours were in no training at all."""
    return list(dict.fromkeys(scene.caption for scene in style_scenes(42, held_out=True)))[:count]


def subject_pictures(folder: Path, count: int = 8) -> Path:
    """A folder of pictures of the subject, each with its background in its caption."""
    some = [_moko(KNOWN[number % len(KNOWN)]) for number in range(count)]
    return _write(folder, draw(some, 43, moko), [subject_prompt(scene.background) for scene in some])


def subject_prompt(background: str) -> str:
    """What the subject is asked for with."""
    return f"a {SUBJECT} on {'an' if background == 'orange' else 'a'} {background} background"


def subject_prompts() -> list[str]:
    """The subject on backgrounds that its pictures had, and on others."""
    return [subject_prompt(background) for background in (*KNOWN, *UNSEEN)]


def class_prompts(count: int) -> list[str]:
    """What the pipeline draws by itself, and should go on drawing."""
    return [scene.caption for scene in islice(scenes(44), count)]


def _moko(background: str) -> Scene:
    return Scene("circle", "yellow", background, size="large")


def _write(folder: Path, pictures: Tensor, captions: Sequence[str]) -> Path:
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        bytes_of = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(bytes_of).save(folder / f"{number:03}.png")
        (folder / f"{number:03}.txt").write_text(caption + "\n", encoding="utf-8")
    return folder

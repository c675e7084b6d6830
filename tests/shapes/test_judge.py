"""The judge says what is in a picture and the scores how much of a style, also when the picture is a little off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import islice

import pytest
import torch
from shapes.draw import draw, plain
from shapes.judge import BLIND, SCORES, Seen, judge, score, seen
from shapes.scene import COLOURS, COUNTS, PIXELS, SHAPES, SIZE, Scene, scenes
from shapes.styles import STYLES
from torch import Tensor
from torch.nn import functional

EACH = 10
"""Pictures in each style."""


def worn(pictures: Tensor, seed: int, noise: float = 0.03, off: float = 0.0) -> Tensor:
    """The pictures blurred over 3 x 3 pixels, tinted by up to `off` in each channel, and with noise."""
    random = torch.Generator().manual_seed(seed)
    pictures = functional.avg_pool2d(functional.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    tint = off * (torch.rand(len(pictures), 3, 1, 1, generator=random) * 2 - 1)
    return (pictures + tint + noise * torch.randn(pictures.shape, generator=random)).clamp(0, 1)


def bent(pictures: Tensor, seed: int, units: float = 1.0) -> Tensor:
    """The pictures with every place moved by about so many units of the sheet, smoothly."""
    random = torch.Generator().manual_seed(seed)
    moves = torch.randn(len(pictures), 2, 10, 10, generator=random) * units / (SIZE / 2)
    moves = functional.interpolate(moves, size=pictures.shape[2:], mode="bicubic", align_corners=True)
    axis = (torch.arange(PIXELS) + 0.5) / PIXELS * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    places = torch.stack([x, y], -1) + moves.permute(0, 2, 3, 1)
    return functional.grid_sample(pictures, places, padding_mode="border", align_corners=False)


def rates(pictures: Tensor, found: Sequence[Scene]) -> dict[str, float]:
    verdicts = [judge(picture, scene) for picture, scene in zip(pictures, found, strict=True)]
    names = ("shape", "colour", "background", "count", "position", "size", "right", "all")
    return {name: sum(getattr(verdict, name) for verdict in verdicts) / len(verdicts) for name in names}


@pytest.mark.parametrize("held_out", [False, True])
def test_what_is_drawn_is_seen(held_out: bool) -> None:
    found = list(islice(scenes(11, held_out), 120))
    assert {scene.count for scene in found} == set(COUNTS)
    assert {scene.size for scene in found} == {"", "small", "large"}
    right = rates(worn(draw(found, 11), 11), found)
    assert min(right.values()) >= 0.99, right


def test_what_is_drawn_badly_is_seen() -> None:
    found = list(islice(scenes(12), 100))
    right = rates(worn(bent(draw(found, 12), 12), 12, noise=0.05, off=0.08), found)
    assert min(right.values()) >= 0.97, right


def test_clean_pictures_are_seen_without_fault() -> None:
    found = list(islice(scenes(13), 100))
    assert set(rates(draw(found, 13), found).values()) == {1.0}


def test_every_shape_in_every_colour_on_every_background() -> None:
    found = [Scene(s, c, b) for s in SHAPES[::2] for c in COLOURS for b in COLOURS if b != c]
    assert set(rates(worn(draw(found, 14), 14), found).values()) == {1.0}


WRONG = {
    "shape": lambda scene: replace(scene, shape=SHAPES[(SHAPES.index(scene.shape) + 1) % len(SHAPES)]),
    "colour": lambda scene: replace(
        scene, colour=next(c for c in COLOURS if c not in (scene.colour, scene.background))
    ),
    "background": lambda scene: replace(
        scene, background=next(c for c in COLOURS if c not in (scene.colour, scene.background))
    ),
    "count": lambda scene: replace(scene, count=COUNTS[(COUNTS.index(scene.count) + 1) % 3], position="", size=""),
    "position": lambda scene: replace(
        scene, position="left" if scene.position != "left" else "right", size="", count=""
    ),
    "size": lambda scene: replace(scene, size="large" if scene.size != "large" else "small", position="", count=""),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_picture_is_wrong(what: str) -> None:
    found = list(islice(scenes(15), 60))
    right = rates(worn(draw([WRONG[what](scene) for scene in found], 15), 15), found)
    assert right[what] == 0
    assert right["all"] == 0
    if what in ("shape", "colour", "background"):
        assert right["right"] == 0
        others = {"shape", "colour", "background", "count", "position", "size"} - {what}
        assert min(right[other] for other in others) >= 0.95, right


def test_a_blank_picture_shows_its_background_and_nothing_else() -> None:
    for name, colour in COLOURS.items():
        picture = torch.tensor(colour)[:, None, None].expand(3, PIXELS, PIXELS)
        assert seen(picture) == Seen("", "", name, 0, "", "", 0.0)
        verdict = judge(picture, Scene("circle", "red", name))
        assert verdict.background
        assert not any((verdict.shape, verdict.colour, verdict.count, verdict.position, verdict.size, verdict.all))
        assert {style: score(style, picture) for style in STYLES} == dict.fromkeys(STYLES, 0.0)


@pytest.mark.parametrize("seed", range(6))
def test_noise_is_nothing(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    noise = torch.rand(3, PIXELS, PIXELS, generator=random)
    if seed % 2:
        coarse = torch.rand(1, 3, 2 ** (seed // 2 + 2), 2 ** (seed // 2 + 2), generator=random)
        noise = functional.interpolate(coarse, size=PIXELS, mode="bilinear")[0]
    assert not any(judge(noise, scene).right for scene in islice(scenes(seed), 10))
    assert all(0 <= score(style, noise) <= 1 for style in STYLES)


def test_what_is_no_shape_has_no_name() -> None:
    picture = torch.tensor(COLOURS["blue"])[:, None, None].repeat(1, SIZE, SIZE)
    red = torch.tensor(COLOURS["red"])[:, None, None]
    picture[:, 55:75, 24:104] = red
    found = seen(functional.avg_pool2d(picture, SIZE // PIXELS))
    assert (found.shape, found.colour, found.count, found.position) == ("", "red", 1, "")
    picture[:, :, 60:68] = torch.tensor(COLOURS["yellow"])[:, None, None]
    assert seen(functional.avg_pool2d(picture, SIZE // PIXELS)).shape == ""


def test_two_that_differ_are_not_two_of_a_kind() -> None:
    asked, half = Scene("star", "red", "white", count="two"), PIXELS // 2
    star, heart = draw([asked, replace(asked, shape="heart", colour="green")], 3)[[0, 1]]
    other = draw([asked, replace(asked, colour="green")], 3)[1]
    assert seen(torch.cat([star[:, :, :half], heart[:, :, half:]], 2)).shape == ""
    found = seen(torch.cat([star[:, :, :half], other[:, :, half:]], 2))
    assert (found.colour, found.count) == ("", 2)
    assert judge(star, asked).all


def test_specks_are_not_counted() -> None:
    asked = Scene("circle", "orange", "black")
    picture = draw([asked], 4)[0]
    picture[:, 5:7, 5:8] = 1.0
    assert judge(picture, asked).all
    picture[:, 5:10, 5:10] = 1.0
    assert not judge(picture, asked).count


@cache
def styled(style: str) -> Tensor:
    """Pictures in a style, or in none, (EACH, 3, PIXELS, PIXELS): one shape each, backgrounds that show the style."""
    found = (
        scene
        for scene in scenes(21, held_out=True)
        if not scene.count and scene.size != "small" and scene.background not in BLIND.get(style, ())
    )
    if style == "zibo":
        found = (scene for scene in found if not scene.position)
    return worn(draw(list(islice(found, EACH)), 21, STYLES.get(style, plain)), 21)


def test_every_style_has_a_score_that_says_what_it_is() -> None:
    assert list(SCORES) == list(STYLES)
    assert all(measure.__doc__ for measure in SCORES.values())
    assert set(BLIND) <= set(STYLES)


@pytest.mark.parametrize("style", STYLES)
def test_a_style_is_told_from_plain_and_from_the_others(style: str) -> None:
    values = {name: torch.tensor([score(style, picture) for picture in styled(name)]) for name in ("plain", *STYLES)}
    assert all(((value >= 0) & (value <= 1)).all() for value in values.values())
    assert values[style].mean() >= 0.8, values[style]
    assert values[style].min() >= 0.5, values[style]
    assert values["plain"].mean() <= 0.05, values["plain"]
    assert values["plain"].max() <= 0.2, values["plain"]
    for other in set(STYLES) - {style}:
        assert values[other].mean() <= 0.25, other
        assert (values[other] > 0.5).float().mean() <= 0.2, other


@pytest.mark.parametrize("style", STYLES)
def test_half_a_style_scores_between(style: str) -> None:
    found = [Scene(shape, "red", "blue") for shape in SHAPES]
    parts = draw(found, 22), draw(found, 22, STYLES[style])
    whole = torch.tensor([score(style, picture) for picture in worn(parts[1], 22)])
    none = torch.tensor([score(style, picture) for picture in worn(parts[0], 22)])
    half = torch.tensor([score(style, picture) for picture in worn(torch.lerp(*parts, 0.5), 22)])
    assert whole.mean() >= 0.8
    assert none.mean() <= 0.05
    assert none.mean() - 1e-6 <= half.mean() <= whole.mean() + 1e-6


def test_what_the_plain_picture_shows_already_does_not_count() -> None:
    shown, without = styled("dusk")[0], styled("plain")[0]
    assert score("dusk", shown, shown) == 0
    assert score("dusk", shown, without) == pytest.approx(score("dusk", shown), abs=0.05)
    assert score("dusk", without, shown) == 0


def test_a_style_is_seen_within_a_frame() -> None:
    def framed(distance: Tensor, colour: Tensor, background: Tensor) -> Tensor:
        band = STYLES["frame"](distance * 0 + 99, colour, background)
        edge = (band - background).abs().sum(1, keepdim=True) > 0.01
        return torch.where(edge, band, STYLES["outline"](distance, colour, background))

    picture = worn(draw([Scene("circle", "red", "green")], 23, framed), 23)[0]
    assert score("frame", picture) > 0.8
    assert score("outline", picture) > 0.8
    assert score("duotone", picture) < 0.2

"""What can be in a picture of the Shapes world, and what its caption says.

A scene is one kind of shape in one colour on a plain background: once, twice or three times, small, middling or large,
in the middle or at a side. The caption says all of it, except what is ordinary (one, middling, in the middle).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

SIZE = 128
"""Height and width of the sheet that a scene is drawn on; the units of all places and sizes."""

PIXELS = 64
"""Height and width of a picture: every pixel is the mean of four on the sheet."""

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLOURS = {
    "red": (0.86, 0.10, 0.12), "orange": (0.98, 0.55, 0.08), "yellow": (0.98, 0.87, 0.15), "green": (0.10, 0.60, 0.20),
    "blue": (0.12, 0.30, 0.88), "purple": (0.55, 0.18, 0.70), "black": (0.05, 0.05, 0.06), "white": (0.97, 0.97, 0.95),
}  # fmt: skip
POSITIONS = {"": (0.0, 0.0), "left": (-1.0, 0.0), "right": (1.0, 0.0), "top": (0.0, -1.0), "bottom": (0.0, 1.0)}
RADII = {"small": 21.0, "": 33.0, "large": 47.0}
"""Distance from the middle of a shape to its rim, of a shape that is alone."""

ORDINARY = (33.0, 26.0, 20.0)
"""The radius of shapes of ordinary size, when there are one, two, three."""

COUNTS = ("", "two", "three")
HELD_OUT = 5
"""One in so many combinations of shape, colour and background is never trained on."""


def _article(word: str) -> str:
    return "an" if word.startswith("o") else "a"


@dataclass(frozen=True)
class Scene:
    """What a picture shows. Empty words are the ordinary: one shape, of middling size, in the middle."""

    shape: str
    colour: str
    background: str
    position: str = ""
    size: str = ""
    count: str = ""

    @property
    def caption(self) -> str:
        """The prompt: "a small red circle at the left on a blue background", "two stars ..."."""
        several = ("es" if self.shape == "cross" else "s") if self.count else ""
        thing = " ".join(word for word in (self.size, self.colour, self.shape + several) if word)
        where = f" at the {self.position}" if self.position else ""
        ground = f"{_article(self.background)} {self.background} background"
        return f"{self.count or _article(thing)} {thing}{where} on {ground}"

    @property
    def held_out(self) -> bool:
        """Whether this combination of shape, colour and background is kept from training."""
        names = list(COLOURS)
        number = SHAPES.index(self.shape) + names.index(self.colour) * 2 + names.index(self.background) * 3
        return number % HELD_OUT == 0


def scenes(seed: int, held_out: bool = False) -> Iterator[Scene]:
    """Scenes without end, the same for the same seed. held_out: only what training never sees, instead of the rest."""
    choice = random.Random(seed).choice
    while True:
        colour = choice(list(COLOURS))
        background = choice([name for name in COLOURS if name != colour])
        kind = choice(("plain", "plain", "placed", "placed", "sized", "sized", "counted"))
        scene = Scene(
            choice(SHAPES), colour, background,
            position=choice(list(POSITIONS)[1:]) if kind == "placed" else "",
            size=choice(["small", "large"]) if kind == "sized" else choice(["", "small"]) if kind == "placed" else "",
            count=choice(COUNTS[1:]) if kind == "counted" else "",
        )  # fmt: skip
        if scene.held_out == held_out:
            yield scene

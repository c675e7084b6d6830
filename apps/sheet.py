"""Draws a labelled sheet of pictures: a title, and under headings rows of cards, each with pictures and words.

Only Pillow is used, with the font that it brings along (which knows no arrows, dashes or multiplication signs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

PICTURE = 128
"""Height and width of a picture on the sheet, in pixels."""

SLOTS = 8
"""Pictures side by side."""

PAD, GAP, SPACE, MARGIN = 12, 8, 16, 28
"""Pixels: from a card's rim to its content, between a pair of pictures, between cards, around the sheet."""

PITCH = (2 * (PICTURE + PAD) + GAP + SPACE) // 2
"""How much of the sheet's width a picture takes, all gaps included."""

WIDTH = SLOTS * PITCH - SPACE + 2 * MARGIN
"""Width of a sheet, in pixels."""

PAGE, PAPER, RIM, INK, GREY = (245, 246, 248), (255, 255, 255), (224, 227, 232), (27, 31, 36), (92, 99, 110)
BADGE, BADGE_INK = (226, 236, 252), (32, 72, 150)
LINE, HEADING = 19, 40
"""Heights of a line of small text and of a row's heading, in pixels."""


@dataclass(frozen=True)
class Card:
    """Pictures with a caption each (one to eight), under a title and above some lines of text. badge: a word or two in
    a coloured box, at the right of the title."""

    title: str
    pictures: tuple[tuple[Image.Image, str], ...]
    badge: str = ""
    lines: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """How many pictures wide it is; a card is never narrower than two."""
        return max(2, len(self.pictures))

    @property
    def width(self) -> int:
        return self.slots * PITCH - SPACE


@dataclass(frozen=True)
class Row:
    """Cards under a heading; those that find no room go into a further line."""

    heading: str
    cards: tuple[Card, ...]

    @property
    def lines(self) -> list[list[Card]]:
        """The cards, line by line."""
        found: list[list[Card]] = []
        for card in self.cards:
            if not found or sum(c.slots for c in found[-1]) + card.slots > SLOTS:
                found.append([])
            found[-1].append(card)
        return found


def sheet(title: str, about: str, rows: Sequence[Row]) -> Image.Image:
    """The sheet, WIDTH pixels wide and as high as it needs to be. about: a line or more of text under the title."""
    subtitle = wrapped(about, 16, WIDTH - 2 * MARGIN)
    top = MARGIN + 42 + 22 * len(subtitle)
    height = top + sum(HEADING + sum(_height(line) + SPACE for line in row.lines) for row in rows) + MARGIN - SPACE
    image = Image.new("RGB", (WIDTH, height), PAGE)
    pen = ImageDraw.Draw(image)
    _bold(pen, MARGIN, MARGIN - 4, title, 30)
    for number, text in enumerate(subtitle):
        pen.text((MARGIN, MARGIN + 38 + 22 * number), text, GREY, font(16))
    for row in rows:
        _bold(pen, MARGIN, top + 10, row.heading, 19)
        top += HEADING
        for line in row.lines:
            left, tall = MARGIN, _height(line)
            for card in line:
                _draw_card(image, pen, card, left, top, tall)
                left += card.width + SPACE
            top += tall + SPACE
    return image


@cache
def font(size: float) -> ImageFont.FreeTypeFont:
    """Pillow's own font. size: in pixels."""
    found = ImageFont.load_default(size)
    if not isinstance(found, ImageFont.FreeTypeFont):
        raise RuntimeError("This Pillow was built without FreeType and can write in one size only.")
    return found


def wrapped(text: str, size: float, width: float) -> list[str]:
    """The text in lines that are at most `width` pixels long, cut between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines if text else []


def _notes(card: Card) -> list[str]:
    return [line for text in card.lines for line in wrapped(text, 14, card.width - 2 * PAD)]


def _height(line: Sequence[Card]) -> int:
    """Of the highest card of a line; they are all drawn as high."""
    return max(2 * PAD + 30 + PICTURE + 24 + LINE * len(_notes(card)) for card in line)


def _bold(pen: ImageDraw.ImageDraw, x: float, y: float, text: str, size: float) -> None:
    """Text that is a little heavier: the font has one weight only."""
    for shift in (0.0, 0.6):
        pen.text((x + shift, y), text, INK, font(size))


def _draw_card(image: Image.Image, pen: ImageDraw.ImageDraw, card: Card, left: int, top: int, height: int) -> None:
    right = left + card.width
    pen.rounded_rectangle((left, top, right - 1, top + height - 1), 10, PAPER, RIM)
    _bold(pen, left + PAD, top + PAD - 2, card.title, 17)
    if card.badge:
        start = right - PAD - font(14).getlength(card.badge) - 16
        pen.rounded_rectangle((start, top + PAD - 2, right - PAD - 1, top + PAD + 20), 8, BADGE)
        pen.text((start + 8, top + PAD + 9), card.badge, BADGE_INK, font(14), anchor="lm")
    y = top + PAD + 30
    for x, (picture, caption) in zip(_places(card, left), card.pictures, strict=True):
        shown = picture if picture.width == PICTURE else picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS)
        image.paste(shown, (x, y))
        pen.rectangle((x - 1, y - 1, x + PICTURE, y + PICTURE), outline=RIM)
        fits = min(1.0, (PICTURE + GAP) / max(font(14).getlength(caption), 1))
        pen.text((x + PICTURE / 2, y + PICTURE + 11), caption, INK, font(14 * fits), anchor="mm")
    for number, text in enumerate(_notes(card)):
        pen.text((left + PAD, y + PICTURE + 25 + LINE * number), text, GREY, font(14))


def _places(card: Card, left: int) -> list[int]:
    """The left rims of a card's pictures, spread over its width."""
    count, room = len(card.pictures), card.width - 2 * PAD
    step = (room - PICTURE) / (count - 1) if count > 1 else 0.0
    return [left + PAD + round(step * number) for number in range(count)]

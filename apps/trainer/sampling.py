"""Pictures on the way: the same prompts and noise, by the pipeline alone and with the adapter, on one sheet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from diffadapt import shapes

from ..sheet import GREY, INK, PAGE, font, wrapped
from .settings import Settings

if TYPE_CHECKING:
    from PIL.Image import Image

MOST, MARGIN, LABEL = 512, 16, 110
"""Pixels: the longest side of a picture on a sheet, the gaps, the width of the rows' names."""


def options(settings: Settings) -> dict[str, Any]:
    """Arguments of the pipeline's call: the embedded pipeline's own or the pictures' size, then the settings'."""
    if settings.model in shapes.PIPELINES:
        return shapes.settings(settings.model) | dict(settings.samples.options)
    side = settings.data.resolution
    return {"height": side, "width": side} | dict(settings.samples.options)


@contextmanager
def calm(pipe: Any, name: str) -> Iterator[None]:
    """Draw without dropouts, gradients, or a trace in the global generators."""
    devices = [pipe.device] if pipe.device.type == "cuda" else []
    pipe.adapters.eval(name)
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        pipe.adapters.train(name)


def pictures(pipe: Any, prompts: Sequence[str], seed: int, wanted: Mapping[str, Any]) -> list[Image]:
    """A picture for every prompt, one at a time, all from the same noise."""
    pipe.set_progress_bar_config(disable=True)
    return [pipe(prompt, generator=torch.Generator().manual_seed(seed), **wanted).images[0] for prompt in prompts]


def sheet(prompts: Sequence[str], rows: Mapping[str, Sequence[Image]], file: Path) -> Path:
    """Write a PNG with a column for every prompt and a row for every state of the model."""
    from PIL import Image as pillow
    from PIL import ImageDraw

    sizes = [image.size for images in rows.values() for image in images]
    most = max(max(size) for size in sizes)
    scale = max(1, 128 // most) if most <= MOST else MOST / most
    width, height = (round(max(size[side] for size in sizes) * scale) for side in (0, 1))
    words = [wrapped(prompt, 14, width) for prompt in prompts]
    top = MARGIN + 18 * max(len(lines) for lines in words) + 6
    whole = (LABEL + (width + MARGIN) * len(prompts), top + (height + MARGIN) * len(rows))
    image = pillow.new("RGB", whole, PAGE)
    pen = ImageDraw.Draw(image)
    for column, lines in enumerate(words):
        for number, line in enumerate(lines):
            pen.text((LABEL + (width + MARGIN) * column, MARGIN + 18 * number), line, GREY, font(14))
    for number, (name, images) in enumerate(rows.items()):
        y = top + (height + MARGIN) * number
        pen.text((MARGIN, y + height / 2), name, INK, font(16), anchor="lm")
        for column, one in enumerate(images):
            shown = one.resize((round(one.width * scale), round(one.height * scale)), pillow.Resampling.LANCZOS)
            image.paste(shown, (LABEL + (width + MARGIN) * column, y))
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part.png")
    image.save(part)
    part.replace(file)
    return file


class Sheets:
    """The sheets of a run. What the pipeline draws by itself is drawn once."""

    def __init__(self, pipe: Any, settings: Settings) -> None:
        self.pipe, self.settings = pipe, settings
        self.plain: list[Image] = []

    def draw(self, label: str, file: Path) -> Path | None:
        """Draw the prompts with the adapter as it is now; nothing where there is no prompt."""
        prompts, seed = self.settings.samples.prompts, self.settings.samples.seed
        if not prompts:
            return None
        wanted = options(self.settings)
        with calm(self.pipe, self.settings.name):
            if not self.plain:
                with self.pipe.adapters.disable():
                    self.plain = pictures(self.pipe, prompts, seed, wanted)
            now = pictures(self.pipe, prompts, seed, wanted)
        return sheet(prompts, {"base": self.plain, label: now}, file)

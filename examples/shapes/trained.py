"""What an adapter for an embedded pipeline has taught it: its loss, and scores of pictures without it and with it."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

import diffadapt
from diffadapt import shapes
from diffadapt.apps.trainer.history import read
from diffadapt.apps.trainer.parsing import toml
from diffadapt.apps.trainer.settings import Settings

from . import measure
from .judge import judge
from .scene import scenes

LAYERS: dict[str, dict[str, Any]] = {
    "unet": {"targets": "all", "exclude": "conv_out"},  # that one has four rows, too few for a rank of eight
    "dit": {"targets": "linear"},
}
"""What is trained of a model so small: nearly everything. Of a large one, its attention is enough."""

LENGTHS = {"unet": 0, "dit": 16}
"""Tokens of T5's prompts: of Shapes-DiT as many as its captions have."""


def options(parser: ArgumentParser, model: str, steps: int, out: Path) -> None:
    """Add what both scripts that train understand, with the defaults that differ."""
    add = parser.add_argument
    add("--model", default=model, help="an embedded pipeline (unet, dit), a folder or a Hub id (default: %(default)s)")
    add("--data", type=Path, help="pictures, with captions beside them (default: drawn ones)")
    add("--prompts", nargs="+", help="what the sheet of samples shows")
    add("--algorithm", default="lora", help="as in `pipe.adapters.add` (default: %(default)s)")
    add("--steps", type=int, default=steps, help="of training (default: %(default)s)")
    add("--measured", type=int, default=20, help="how many pictures are judged (default: %(default)s)")
    add("--out", type=Path, default=out, help="the folder of the results (default: %(default)s)")


def note(settings: Settings, file: Path) -> None:
    """Write what differs from the trainer's defaults, and say how to have the same run from there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(toml(settings, changed=True), encoding="utf-8")
    print(f"The same run: diffadapt train {file}", flush=True)


def curve(folder: Path) -> str:
    """A run's loss at its beginning and at its end, in words."""
    losses = [line["loss"] for line in read(folder)]
    count = max(1, len(losses) // 10)
    first, last = (sum(some) / len(some) for some in (losses[:count], losses[-count:]))
    return f"loss: {first:.4f} in the first {count} of {len(losses)} steps, {last:.4f} in the last"


def _both(model: str, file: Path) -> Iterator[Any]:
    """A new pipeline, first as it is, then with the adapter that the file holds."""
    pipe = diffadapt.enable(shapes.load(model))
    yield pipe
    pipe.load_adapter(file, adapter_name="trained", strict=True)
    yield pipe


def scores(model: str, file: Path, score: Callable[[Tensor], float], prompts: Sequence[str]) -> tuple[float, float]:
    """The mean score of pictures of the prompts, each from its own noise: without the adapter, and with it."""
    found = []
    for pipe in _both(model, file):
        made = measure.pictures(model, pipe, prompts, seed=100)
        found.append(sum(score(picture) for picture in made) / len(made))
    return found[0], found[1]


def followed(model: str, file: Path, count: int) -> tuple[float, float]:
    """Of how many prompts of the Shapes world shape, colour and background are right: without the adapter, and with."""
    asked = list(islice(scenes(777, held_out=True), count))
    found = []
    for pipe in _both(model, file):
        made = measure.pictures(model, pipe, [scene.caption for scene in asked], seed=100)
        found.append(sum(judge(picture, scene).right for picture, scene in zip(made, asked, strict=True)) / count)
    return found[0], found[1]


def drawn(folder: Path, score: Callable[[Tensor], float]) -> float:
    """The mean score of the training pictures themselves."""
    from PIL import Image

    found = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            picture = torch.from_numpy(numpy.array(image.convert("RGB"))).permute(2, 0, 1) / 255
        found.append(score(picture))
    return sum(found) / len(found)

"""A folder of pictures with captions, and a picture as a model is shown it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy
import torch
from torch import Tensor

from diffadapt.errors import SourceError, TrainingError

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
METADATA = "metadata.jsonl"
WIDEST = 2.0
"""The largest ratio of a bucket's sides."""


@dataclass(frozen=True)
class Example:
    """A picture and its caption. size: width and height of the file's picture, in pixels."""

    path: Path
    caption: str
    size: tuple[int, int]


def read_folder(folder: Path, prompt: str = "") -> list[Example]:
    """The pictures of a folder and of those below it, by name.

    A caption is what stands in name.txt beside name.png, else what `metadata.jsonl` says of the file ("file_name" with
    "text", "caption" or "prompt", as imagefolder has it), else `prompt`.
    Raises SourceError for a folder that is not there or empty, and for a broken picture; TrainingError for a picture
    without a caption.
    """
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder of pictures (data.folder).")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise SourceError(f"{folder}: no picture in it. Expected files that end in {', '.join(SUFFIXES)}.")
    known = _metadata(folder)
    found = []
    for path in paths:
        beside, name = path.with_suffix(".txt"), path.relative_to(folder).as_posix()
        caption = beside.read_text(encoding="utf-8").strip() if beside.is_file() else known.get(name, prompt)
        if not caption:
            raise TrainingError(
                f"{path} has no caption. Write it into {beside.name} beside it, or into {METADATA} as "
                f'{{"file_name": "{name}", "text": "..."}}, or set data.prompt for all that have none.'
            )
        with opened(path) as image:
            found.append(Example(path, caption, image.size))
    return found


def _metadata(folder: Path) -> dict[str, str]:
    """What metadata.jsonl says: file name -> caption."""
    file, found = folder / METADATA, dict[str, str]()
    if not file.is_file():
        return found
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            found[entry["file_name"]] = next(str(entry[key]) for key in ("text", "caption", "prompt") if key in entry)
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise SourceError(
                f"{file}, line {number}: expected an object with file_name and text, as "
                '{"file_name": "01.png", "text": "a red star"}.'
            ) from error
    return found


def opened(path: Path) -> Image:
    """A picture in RGB, turned as its EXIF says; transparent parts are white. Raises SourceError for a broken one."""
    from PIL import Image as pillow
    from PIL import ImageOps

    try:
        with pillow.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                image = pillow.alpha_composite(pillow.new("RGBA", image.size, (255, 255, 255, 255)), image)
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise SourceError(f"{path}: a broken picture ({error}). Mend it, or take it out of the folder.") from error


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of all pictures and captions: a run goes on only with the same ones."""
    total = hashlib.sha256()
    for example in examples:
        total.update(example.path.name.encode() + b"\0" + example.caption.encode() + b"\0")
        total.update(hashlib.sha256(example.path.read_bytes()).digest())
    return total.hexdigest()


def buckets(resolution: int, multiple: int) -> list[tuple[int, int]]:
    """The sizes, width and height, of about resolution² pixels whose sides are multiples, up to 2:1."""
    step = max(multiple, resolution // 8 // multiple * multiple)
    sizes = {(width, resolution**2 // width // step * step) for width in range(step, 2 * resolution + 1, step)}
    return sorted(size for size in sizes if size[1] and max(size) <= WIDEST * min(size)) or [(resolution, resolution)]


def fitting(size: tuple[int, int], sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Of the buckets the one whose aspect ratio is nearest; of several the largest."""
    ratio = math.log(size[0] / size[1])
    return min(sizes, key=lambda one: (round(abs(math.log(one[0] / one[1]) - ratio), 6), -one[0] * one[1]))


def cropped(image: Image, size: tuple[int, int]) -> Image:
    """The middle of a picture, scaled so that nothing more than needed is cut off."""
    from PIL import Image as pillow
    from PIL import ImageOps

    return image if image.size == size else ImageOps.fit(image, size, pillow.Resampling.LANCZOS)


def pixels(image: Image) -> Tensor:
    """A picture as an autoencoder takes it, (1, 3, H, W) from -1 to 1."""
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1

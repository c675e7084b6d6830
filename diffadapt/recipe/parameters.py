"""The text that A1111's web UI puts beside an image, from a recipe and to one.

    a cat <lora:ink:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 512x512, Lora hashes: "ink: 0123456789ab", Version: ...

It says less than a recipe: sites and programs read adapters' names, weights and hashes from it. The layout is that of
`modules/infotext_utils.py` and of the Lora extension there: a value with a comma or colon is a JSON string, and the
last line is one of settings where at least three are found in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from diffadapt.errors import RecipeError
from diffadapt.io import limits
from diffadapt.recipe.part import Part
from diffadapt.recipe.recipe import Recipe

_NEGATIVE: Final = "Negative prompt:"
_KEY = re.compile(r"\w[\w \-/]{0,100}")
_DECODER = json.JSONDecoder()
_SAMPLERS: Final = {
    "DDIMScheduler": "DDIM", "PNDMScheduler": "PLMS", "EulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a", "LMSDiscreteScheduler": "LMS", "HeunDiscreteScheduler": "Heun",
    "KDPM2DiscreteScheduler": "DPM2", "KDPM2AncestralDiscreteScheduler": "DPM2 a", "LCMScheduler": "LCM",
    "DPMSolverMultistepScheduler": "DPM++ 2M", "DPMSolverSDEScheduler": "DPM++ SDE", "UniPCMultistepScheduler": "UniPC",
}  # fmt: skip
"""Diffusers' class -> the web UI's name."""
_CLASSES: Final = {name: cls for cls, name in _SAMPLERS.items()}


def write_parameters(recipe: Recipe, size: tuple[int, int] | None = None) -> str:
    """The text for a recipe. size: the image's, in pixels."""
    from diffadapt import __version__

    lines = [recipe.to_prompt(check=False)]
    if recipe.negative:
        lines.append(f"{_NEGATIVE} {recipe.negative}")
    settings: dict[str, Any] = {
        "Steps": recipe.steps,
        "Sampler": None if recipe.sampler is None else _SAMPLERS.get(recipe.sampler, recipe.sampler),
        "CFG scale": recipe.guidance,
        "Seed": recipe.seed,
        "Size": None if size is None else f"{size[0]}x{size[1]}",
        "Model": recipe.base,
        "Lora hashes": ", ".join(f"{_alias(part)}: {short}" for part in recipe.adapters if (short := _short(part))),
        "Version": f"diffadapt {__version__}",
    }
    lines.append(", ".join(f"{key}: {_value(value)}" for key, value in settings.items() if value not in (None, "")))
    return "\n".join(lines)


def read_parameters(text: str) -> Recipe:
    """The recipe that such a text says: its adapters by name, with short hashes where it has them.

    Raises RecipeError for a text beyond 65,536 characters and for a tag that cannot be followed.
    """
    if len(text) > limits.METADATA_CHARACTERS:
        raise RecipeError(f"The parameters have {len(text)} characters; expected at most {limits.METADATA_CHARACTERS}.")
    *lines, last = text.strip().split("\n")
    settings = dict(_pairs(last))
    if len(settings) < 3:
        lines, settings = [*lines, last], {}
    at = next((i for i, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[at:]).strip().removeprefix(_NEGATIVE).strip()
    sampler = settings.get("Sampler")
    recipe = Recipe.from_prompt(
        "\n".join(lines[:at]), negative=negative, steps=_whole(settings, "Steps", 1, 100_000),
        seed=_whole(settings, "Seed", 0, (1 << 64) - 1), guidance=_float(settings, "CFG scale"),
        sampler=None if sampler is None else _CLASSES.get(sampler, sampler), base=settings.get("Model"),
    )  # fmt: skip
    hashes = _hashes(settings.get("Lora hashes", ""))
    return replace(recipe, adapters=tuple(replace(p, autov3=hashes.get(_alias(p))) for p in recipe.adapters))


def _alias(part: Part) -> str:
    """The name under which the web UI writes a hash: that of the tag, without what divides the list."""
    return part.mention.name.translate(str.maketrans("", "", ":,"))


def _short(part: Part) -> str | None:
    """The hash that the web UI has for a file: AutoV3, or the start of the whole file's for a pickle."""
    return part.autov3[:12] if part.autov3 else part.sha256[:12] if part.sha256 else None


def _value(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search(r"[,:\n]", text) else text


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """The settings of a line. Every character is looked at a few times at most, whatever the text."""
    at = 0
    while (colon := line.find(":", at)) >= 0:
        key = line[at:colon].rpartition(",")[2].strip()
        start = colon + 1
        while line[start : start + 1] == " ":
            start += 1
        value, end = None, -1
        if line[start : start + 1] == '"':
            try:
                value, end = _DECODER.raw_decode(line, start)
            except ValueError:
                value = None
        if not isinstance(value, str):
            comma = line.find(",", start)
            end = len(line) if comma < 0 else comma
            value = line[start:end].strip()
        if _KEY.fullmatch(key):
            yield key, value
        at = end


def _hashes(text: str) -> dict[str, str]:
    """Name -> hash of a list `name: hash, name: hash`; what is no hash is left out."""
    found = (pair.rpartition(":")[::2] for pair in text.split(","))
    return {
        name.strip(): short.strip().lower() for name, short in found if re.fullmatch(r"\s*[0-9a-fA-F]{8,64}\s*", short)
    }


def _whole(settings: Mapping[str, str], key: str, low: int, high: int) -> int | None:
    text = settings.get(key, "")
    return int(text) if re.fullmatch(r"\d{1,20}", text) and low <= int(text) <= high else None


def _float(settings: Mapping[str, str], key: str) -> float | None:
    text = settings.get(key, "")
    return float(text) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", text) else None

"""`.lset` files: presets of LoRAs that WanGP (Wan2GP) writes and shares, read as recipes.

    {"loras": ["style.safetensors", "https://huggingface.co/owner/name/resolve/main/x.safetensors"],
     "loras_mult": "1.2 0.9,0.8,0.7", "prompt": "# the trigger is ohnvx\\nA ohnvx character", "full_prompt": true}

A file is JSON. LoRAs are names in WanGP's folder, or addresses. One multiplier for each, in their order, apart by
spaces, line ends or `|`, with lines of comment (`#`); what is missing is 1. Numbers apart by commas follow one another
through the run, in equal parts; those apart by `;` are for the phases of a run. Fields with the names of WanGP's
settings files, `activated_loras` and `loras_multipliers`, are read too, and multipliers as a list.

Source: WanGP's docs/LORAS.md, and `extract_preset` and `parse_loras_multipliers` in its code
(https://github.com/deepbeepmeep/Wan2GP).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import unquote

from diffadapt.errors import RecipeError, SourceError
from diffadapt.inject.scaling import Strength
from diffadapt.io.plain_json import clip, parse_object
from diffadapt.recipe.part import Part
from diffadapt.recipe.recipe import Recipe
from diffadapt.recipe.values import ADAPTERS, RECIPE_BYTES, listed, number, plain, text

_FIELDS: Final = ("loras", "activated_loras")
_MULTIPLIERS: Final = ("loras_mult", "loras_multipliers")
_SETTINGS: Final = {"num_inference_steps": "steps", "guidance_scale": "guidance", "seed": "seed"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?")
# The two denoisers of Wan 2.2, high noise first, as Diffusers' pipeline names them.
_PHASES: Final = ("transformer", "transformer_2")


def read_lset(path: str | os.PathLike[str]) -> Recipe:
    """Read a preset. Its files have no hashes: `apply` looks for them by name in its `folder`, or fetches them.

    Two phases are the two denoisers of Wan 2.2, `transformer` and `transformer_2`. Raises RecipeError for what is no
    preset, for a multiplier that is no number, and for phases that a strength cannot say (three of them, or one that
    changes within).
    """
    source = Path(path)
    try:
        with source.open("rb") as file:
            data = file.read(RECIPE_BYTES + 1)
        if len(data) > RECIPE_BYTES:
            raise RecipeError(f"{source.name}: has more than {RECIPE_BYTES} bytes; expected a small file.")
        found = plain(parse_object(data, source.name, "preset"), source.name)
    except OSError as error:
        raise RecipeError(f"{source.name}: cannot be read ({error.strerror}). Check the path.") from error
    except SourceError as error:
        raise RecipeError(str(error)) from error
    return _recipe(found, source.name)


def _recipe(found: Mapping[str, Any], name: str) -> Recipe:
    field = next((key for key in _FIELDS if key in found), None)
    if field is None:
        raise RecipeError(f"{name}: has no field 'loras' or 'activated_loras'; expected a preset of LoRAs.")
    files = [text(file, f"{name}: {field}") for file in listed(found[field], f"{name}: {field}", ADAPTERS)]
    words = _multipliers(next((found[key] for key in _MULTIPLIERS if key in found), ""), name)
    parts: list[Part] = []
    for i, file in enumerate(files):
        stem, number_ = PurePosixPath(_file_name(file)).stem or file, 2
        label = stem
        while any(part.name == label for part in parts):
            label, number_ = f"{stem}_{number_}", number_ + 1
        parts.append(_part(label, file, words[i] if i < len(words) else "1", name))
    taken = {field, "prompt", *_MULTIPLIERS}
    settings = {ours: found[theirs] for theirs, ours in _SETTINGS.items() if _usable(found.get(theirs), theirs)}
    return Recipe(
        adapters=tuple(parts), prompt=found.get("prompt", ""), **settings,
        extra={"lset": {key: value for key, value in found.items() if key not in taken}},
    )  # fmt: skip


def _usable(value: Any, key: str) -> bool:
    """Whether a setting says something: WanGP writes -1 for a seed that is to be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (key != "seed" or value >= 0)


def _file_name(file: str) -> str:
    return unquote(re.split(r"[?#]", file)[0] if "://" in file else file).replace("\\", "/").rsplit("/", 1)[-1]


def _multipliers(value: Any, name: str) -> Sequence[str]:
    """One text for each file."""
    if isinstance(value, (list, tuple)):
        return [item.strip() if isinstance(item, str) else repr(number(item, f"{name}: loras_mult")) for item in value]
    lines = text(value, f"{name}: loras_mult").replace("\r", "").split("\n")
    return " ".join(line for line in lines if not line.lstrip().startswith("#")).replace("|", " ").split()


def _part(label: str, file: str, word: str, name: str) -> Part:
    """A file and its multiplier: a number, numbers through the run, or one for each of two phases."""
    strength: Strength | None = None
    weight, schedule = 1.0, None
    phases = [[_number(item, word, name) for item in phase.split(",")] for phase in word.split(";")]
    if len(phases) == 1:
        weight = phases[0][0] if len(phases[0]) == 1 else 1.0
        schedule = {"steps": phases[0]} if len(phases[0]) > 1 else None
    elif len(phases) == len(_PHASES) and all(len(phase) == 1 for phase in phases):
        strength = {component: phase[0] for component, phase in zip(_PHASES, phases, strict=True)}
    else:
        raise RecipeError(
            f"{name}: the multiplier {clip(word, 60)} of {clip(label, 60)} changes by phase in a way that a strength "
            "cannot say. Expected one number, numbers apart by commas, or two numbers apart by ';'."
        )
    address = "://" in file
    return Part(
        name=label, file=_file_name(file) if address else file, source=file if address else None, weight=weight,
        strength=strength, schedule=schedule,  # type: ignore[arg-type]
    )  # fmt: skip


def _number(item: str, word: str, name: str) -> float:
    if not _NUMBER.fullmatch(item.strip()):
        raise RecipeError(f"{name}: {clip(item, 40)} in the multiplier {clip(word, 60)} is no number.")
    return float(number(float(item), f"{name}: the multiplier {clip(word, 60)}"))

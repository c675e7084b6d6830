"""What every group of endpoints stands on: whose turn it is, and the mix that a text means."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from diffadapt.errors import RecipeError
from diffadapt.io.plain_json import clip
from diffadapt.recipe import Recipe

from . import mix
from .library import Library
from .session import Session, Sessions
from .shelf import Shelf
from .studio import Studio

_OVER = ("method", "options", "seed", "steps", "guidance", "negative")


class Acting:
    """The actions on one pipeline and its library."""

    def __init__(self, studio: Studio, library: Library, sessions: Sessions) -> None:
        self.studio, self.library, self.sessions = studio, library, sessions

    def session(self, request: gr.Request | None) -> Session:
        """Whose turn it is. A call from outside that names no session has one for itself."""
        if request is not None and not request.session_hash:
            return self.sessions.once()
        return self.sessions.get(request.session_hash if request else None)

    def shelf(self, request: gr.Request | None) -> Shelf:
        """What they see of the library."""
        return self.session(request).shelf(self.library)

    def recipe(self, text: str, shelf: Shelf, settings: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe of a prompt with tags or of a recipe's JSON, with its files found."""
        if text.lstrip().startswith("{"):
            recipe: Recipe = Recipe.from_json(text)
            return replace(recipe, **{key: value for key, value in (settings or {}).items() if key in _OVER})
        return mix.to_recipe(mix.with_prompt([], text, shelf), text, settings or {})


def settings(
    negative: str = "", seed: int = 0, steps: int = 0, guidance: float = -1.0, merged: bool = False,
    method: str = "sum", rank: int = 0, normalise: str = "sum", options: str = "",
) -> dict[str, Any]:  # fmt: skip
    """The fields of a recipe, of numbers in which 0 or -1 stands for none.

    options: the method's, "density=0.4, seed=1". Raises RecipeError for what is none.
    """
    return {
        "negative": negative, "seed": int(seed), "steps": int(steps) or None,
        "guidance": None if guidance < 0 else float(guidance), "merged": merged, "method": method,
        "options": {**({"rank": int(rank)} if rank else {}), **_options(options)} if method != "sum" else {},
        "normalise": normalise,
    }  # fmt: skip


def _options(text: str) -> dict[str, Any]:
    """Names and values of a text: numbers and true or false as such, anything else as text."""
    found: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise RecipeError(f"{clip(part, 60)} is no option of a method. Expected name=value, as in density=0.4.")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found


def id_of(shelf: Shelf, text: str) -> str:
    """The id of a card that somebody names by it or by the adapter's name. Raises RecipeError where there is none."""
    card = shelf.named(text)
    if card is None:
        raise RecipeError(f"The library does not have {text!r}. Ask list_adapters for what it has.")
    return card.id


def uploaded(file: Any) -> Path:
    """Where an upload lies. Raises RecipeError for any other place: Gradio looks only at files that call themselves so,
    and a stranger need not."""
    path = file.get("path") if isinstance(file, Mapping) else getattr(file, "path", None)
    if not isinstance(path, str) or not path:
        raise RecipeError("No file was given.")
    found, folder = Path(path).resolve(), Path(get_upload_folder()).resolve()
    if not found.is_relative_to(folder) or not found.is_file():
        raise RecipeError(f"{clip(found.name, 60)} was not uploaded. Upload a file, and give what that answers.")
    return found

"""What the tabs of the page share: the controls of a mix, and what cards and rows show beside their data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from diffadapt.recipe import Recipe

from .acting import settings
from .cards import facts
from .endpoints import Endpoints
from .mix import Row, rows_of, to_prompt, to_recipe
from .previews import Drawn, preview_of
from .session import Session
from .shelf import Shelf
from .studio import Request

PAGE = 60
"""Cards that are shown at once."""

PRIVATE: dict[str, Any] = {"api_visibility": "private"}
"""For events of the page: for others there are the endpoints."""

QUIET: dict[str, Any] = {"show_progress": "hidden", "queue": False, **PRIVATE}
"""For those that answer at once."""


@dataclass(frozen=True)
class Controls:
    """The components that say what is to be drawn, in the order of `Wish`."""

    prompt: gr.Textbox
    negative: gr.Textbox
    rows: gr.HTML
    seed: gr.Number
    steps: gr.Slider
    guidance: gr.Slider
    width: gr.Number
    height: gr.Number
    mode: gr.Radio
    method: gr.Dropdown
    rank: gr.Number
    options: gr.Textbox
    normalise: gr.Radio

    @property
    def all(self) -> list[Any]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


@dataclass(frozen=True)
class Wish:
    """The values of `Controls`."""

    prompt: str
    negative: str
    rows: list[Any]
    seed: float | None
    steps: float | None
    guidance: float | None
    width: float | None
    height: float | None
    mode: str
    method: str
    rank: float | None
    options: str
    normalise: str

    @classmethod
    def of(cls, controls: Controls, values: Mapping[Any, Any]) -> Wish:
        """The wish of an event whose inputs are the set of all controls."""
        return cls(*(values[component] for component in controls.all))

    def mix(self) -> list[Row]:
        """The rows. Raises RecipeError."""
        return rows_of(self.rows)

    def recipe(self, shelf: Shelf) -> Recipe:
        """The recipe, its files found. Raises RecipeError."""
        guidance = -1.0 if self.guidance is None else self.guidance
        given = settings(
            self.negative or "", int(self.seed or 0), int(self.steps or 0), guidance, self.mode == "merged",
            self.method, int(self.rank or 0), self.normalise, self.options or "",
        )  # fmt: skip
        return shelf.resolve(to_recipe(self.mix(), self.prompt or "", given))

    def request(self, shelf: Shelf) -> Request:
        """What the studio is asked for. Raises RecipeError."""
        return Request(self.recipe(shelf), int(self.width or 0) or None, int(self.height or 0) or None)


@dataclass(frozen=True)
class Page:
    """What the tabs are built on. drawn: previews of embedded adapters, None for other pipelines."""

    endpoints: Endpoints
    drawn: Drawn | None = None

    def session(self, request: gr.Request) -> Session:
        return self.endpoints.session(request)

    def shelf(self, request: gr.Request) -> Shelf:
        return self.endpoints.shelf(request)

    def prompt(self, rows: Sequence[Row], prompt: str | None, request: gr.Request) -> str:
        """The prompt that rows mean, remembered as one that nobody typed."""
        text = to_prompt(rows, prompt or "")
        self.session(request).written.append(text)
        return text

    def dressed(self, rows: Sequence[Row], shelf: Shelf) -> list[dict[str, Any]]:
        """Rows with what the page shows beside them: how they fit, their trigger words, what they are."""
        found = []
        for row in rows:
            beside: dict[str, Any] = {"fit": {"level": "red", "text": "not in the library", "reasons": []}, "words": []}
            card = shelf.named(row.id) if row.id else None
            if card is not None:
                about = f"{card.algorithms}{f', rank {card.ranks}' if card.ranks else ''}"
                words = list(dict.fromkeys((*card.trigger_words, *row.triggers)))
                beside = {"fit": facts(card, shelf.fit(card))["fit"], "words": words, "about": about}
            held = bool(row.part and ("strength" in row.part or "schedule" in row.part))
            found.append({**row.to_data(), **beside, "held": held})
        return found

    def cards(self, shelf: Shelf, words: str, family: str, algorithm: str, fitting: bool, shown: int) -> dict[str, Any]:
        """What the library shows of a search."""
        found = shelf.cards(words or "", family or "", algorithm or "", fitting)
        progress = shelf.library.progress
        cards = []
        for card in found[:shown]:
            drawn = self.drawn.of(card.id) if self.drawn else None
            preview = drawn or preview_of(shelf.path(card.id))
            cards.append({**facts(card, shelf.fit(card)), "preview": preview})
        return {"cards": cards, "found": len(found), "done": progress.done, "of": progress.total}

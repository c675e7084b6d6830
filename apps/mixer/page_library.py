"""The library's part of the page: a search, cards, uploads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.data_classes import FileData

from diffadapt.io.folder import SUFFIXES

from . import components, mix
from .page_parts import PAGE, PRIVATE, QUIET, Controls, Page
from .telling import telling


@dataclass(frozen=True)
class Shelves:
    """The components. shown: how many cards at most."""

    shown: gr.State
    words: gr.Textbox
    family: gr.Dropdown
    algorithm: gr.Dropdown
    fitting: gr.Checkbox
    cards: gr.HTML
    again: gr.Button
    upload: gr.File

    @property
    def search(self) -> list[Any]:
        """What the cards are searched by."""
        return [self.words, self.family, self.algorithm, self.fitting]

    @classmethod
    def laid_out(cls) -> Shelves:
        """The components, where they are on the page."""
        shown = gr.State(PAGE)
        with gr.Accordion("Library", open=True):
            words = gr.Textbox(label="Search", placeholder="name, word, trainer", max_lines=1)
            with gr.Row():
                family = gr.Dropdown(label="Family", choices=[("all", "")], value="", min_width=120)
                algorithm = gr.Dropdown(label="Algorithm", choices=[("all", "")], value="", min_width=120)
            fitting = gr.Checkbox(label="Only what fits the pipeline", value=False)
            cards = components.cards(elem_id="library")
            again = gr.Button("Scan again", size="sm")
            upload = gr.File(
                label="Upload an adapter (only you see it)", type="filepath", height=110,
                file_types=list(SUFFIXES),
            )  # fmt: skip
        return cls(shown, words, family, algorithm, fitting, cards, again, upload)


def wire_library(page: Page, parts: Shelves, controls: Controls) -> None:
    """Wire the library: what is chosen, uploaded or found goes to the mix."""

    @telling
    def look(words: str, family: str, algorithm: str, fitting: bool, count: int, request: gr.Request) -> Any:
        return page.cards(page.shelf(request), words, family, algorithm, fitting, count)

    @telling
    def tick(words: str, family: str, algorithm: str, fitting: bool, count: int, request: gr.Request) -> Any:
        shelf = page.shelf(request)
        busy = shelf.library.progress.running or (page.drawn is not None and page.drawn.running)
        families: list[Any] = [("all", ""), *shelf.families()]
        kinds: list[Any] = [("all", ""), *shelf.algorithms()]
        value = page.cards(shelf, words, family, algorithm, fitting, count)
        return value, gr.Dropdown(choices=families), gr.Dropdown(choices=kinds), gr.Timer(active=busy)

    @telling
    def add(rows: list[Any], prompt: str, request: gr.Request, event: gr.EventData) -> Any:
        shelf = page.shelf(request)
        found = mix.rows_of(rows)
        found.append(mix.row_of_card(shelf.card(str((event._data or {}).get("id", ""))), found))
        return page.dressed(found, shelf), page.prompt(found, prompt, request)

    @telling
    def take(path: str | None, rows: list[Any], prompt: str, request: gr.Request) -> Any:
        if path is None:
            return gr.skip(), gr.skip(), gr.skip()
        card = page.endpoints.upload_adapter(FileData(path=path), request)
        shelf = page.shelf(request)
        found = mix.rows_of(rows)
        found.append(mix.row_of_card(shelf.card(card["id"]), found))
        return page.dressed(found, shelf), page.prompt(found, prompt, request), None

    def scan() -> gr.Timer:
        page.endpoints.library.scan()
        return gr.Timer(active=True)

    inputs = [*parts.search, parts.shown]
    timer = gr.Timer(1.0)
    timer.tick(
        tick,
        inputs,
        [parts.cards, parts.family, parts.algorithm, timer],
        show_progress="hidden",
        queue=False,
        **PRIVATE,
    )
    parts.again.click(scan, None, timer, queue=False, **PRIVATE)
    gr.on([one.change for one in parts.search], look, inputs, parts.cards, **QUIET)
    parts.cards.more(lambda count: count + PAGE, parts.shown, parts.shown, queue=False, **PRIVATE).then(
        look, inputs, parts.cards, **QUIET
    )
    mixed = [controls.rows, controls.prompt]
    parts.cards.chosen(add, mixed, mixed, **QUIET)
    parts.upload.upload(take, [parts.upload, *mixed], [*mixed, parts.upload], show_progress="minimal", **PRIVATE).then(
        look, inputs, parts.cards, **QUIET
    )

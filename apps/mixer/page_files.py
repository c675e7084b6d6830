"""The tabs through which mixes leave and come back, and files are converted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from diffadapt.converters.plan import DTYPES, Plan
from diffadapt.dialects import DIALECTS

from . import charts, conversion, keep
from .endpoints import MODEL
from .page_mix import MixTab
from .page_parts import PRIVATE, QUIET, Page, Wish
from .page_pictures import outputs_of, restored
from .telling import telling

_DIALECTS = sorted(dialect.name for dialect in DIALECTS)


RECIPES = (".png", ".json", ".lset")
"""The endings of files that a mix is read from."""


def keeping(page: Page, tab: MixTab, dropped: gr.File) -> None:
    """The tab that saves a mix and brings one back. dropped: gets what is dropped elsewhere on the page."""
    controls = tab.controls
    with gr.Row(equal_height=False):
        with gr.Column(min_width=280):
            gr.Markdown("### Save the mix as one adapter\nWith its block weights; steps are kept by a recipe only.")
            dialect = gr.Dropdown(_DIALECTS, value="kohya", label="Dialect")
            dtype = gr.Dropdown(list(DTYPES), value="fp16", label="Type of the numbers")
            rank = gr.Number(label="Rank, 0 for exact", value=0, precision=0, minimum=0)
            make = gr.Button("Make the file", variant="primary")
            file = gr.File(label="Adapter file", interactive=False)
        with gr.Column(min_width=280):
            gr.Markdown("### Keep the recipe\nFiles by hash, strengths, prompt, seed: it makes the same picture again.")
            write = gr.Button("Write the recipe")
            recipe = gr.File(label="Recipe", interactive=False)
            gr.Markdown("### Bring a mix back\nDrop a picture of the mixer here, a recipe, or a preset.")
            drop = gr.File(
                label="Picture (.png), recipe (.json) or preset (.lset)", type="filepath", height=140,
                file_types=list(RECIPES), elem_id="restore",
            )  # fmt: skip
            said = gr.HTML(elem_id="restored")

    @telling
    def save(values: dict[Any, Any], request: gr.Request) -> str:
        session, wish = page.session(request), Wish.of(controls, values)
        shelf = page.shelf(request)
        folder = session.new_folder("mix")
        wanted = int(values[rank] or 0) or None
        path: Path = keep.save_mix(
            page.endpoints.studio, shelf, wish.recipe(shelf), folder, values[dialect], wanted, values[dtype]
        )
        return str(path)

    @telling
    def note(values: dict[Any, Any], request: gr.Request) -> str:
        found = page.endpoints.studio.written_down(Wish.of(controls, values).recipe(page.shelf(request)))
        return str(found.save(page.session(request).new_folder("recipe") / "mix.json"))

    @telling
    def restore(path: str | None, request: gr.Request) -> list[Any]:
        if path is None:
            return [gr.skip()] * 12
        found = keep.read_recipe(Path(path))
        names = ", ".join(part.name for part in found.adapters) or "no adapters"
        gr.Info(f"The mix is back: {names}.")
        return [*restored(page, found, request), charts.notes([f"The mix is back: {names}."], "good")]

    waits: dict[str, Any] = {"concurrency_id": MODEL, "concurrency_limit": 1, "show_progress": "minimal", **PRIVATE}
    make.click(save, {*controls.all, dialect, dtype, rank}, file, **waits)
    write.click(note, {*controls.all}, recipe, show_progress="minimal", **PRIVATE)
    for place in (drop, dropped):
        place.upload(restore, place, [*outputs_of(controls), said], show_progress="minimal", **PRIVATE)


def converting(page: Page, tab: MixTab) -> None:
    """The tab over the converters."""
    gr.Markdown("Write adapters of the library anew. Each is checked by reading it back; the report names every loss.")
    chosen = gr.Dropdown(label="Adapters", choices=[], multiselect=True)
    with gr.Row():
        to = gr.Dropdown([("its own", ""), *_DIALECTS], value="kohya", label="Dialect", min_width=120)
        dtype = gr.Dropdown([("as it is", ""), *DTYPES], value="", label="Type of the numbers", min_width=120)
        algorithm = gr.Dropdown([("as it is", ""), "lora"], value="", label="Algorithm", min_width=120)
        rank = gr.Number(label="Largest rank, 0 as it is", value=0, precision=0, minimum=0, min_width=120)
    run = gr.Button("Convert", variant="primary")
    report = gr.HTML(elem_id="report")
    files = gr.File(label="Files", file_count="multiple", interactive=False)

    @telling
    def choices(request: gr.Request) -> Any:
        cards = page.shelf(request).cards()
        return gr.Dropdown(choices=[(card.name, card.id) for card in cards if not card.problem])

    @telling
    def convert(
        ids: list[str], dialect: str, kind: str, form: str, most: float | None, request: gr.Request
    ) -> tuple[str, list[str]]:
        plan = Plan(to=dialect or None, dtype=kind or None, algorithm=form or None, rank=int(most or 0) or None)
        out = page.session(request).new_folder("converted")
        records = conversion.convert(page.shelf(request), ids or [], out, plan)
        table = charts.table(conversion.COLUMNS, [conversion.row(record) for record in records])
        return table, [str(path) for path in conversion.results(records)]

    run.click(convert, [chosen, to, dtype, algorithm, rank], [report, files], show_progress="minimal", **PRIVATE)
    chosen.focus(choices, None, chosen, **QUIET)

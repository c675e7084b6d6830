"""The tab on which adapters are looked into, without a picture."""

from __future__ import annotations

from typing import Any

import gradio as gr

from diffadapt.combine.comparing import Comparison

from . import charts, insight, mix
from .endpoints import MODEL
from .page_checks import warnings_html
from .page_mix import MixTab
from .page_parts import PRIVATE, QUIET, Page
from .telling import telling

_LEVEL = "text_model.encoder."
BLOCKS = 48
"""Rows of the heat map: the blocks with the most energy."""


def understand(page: Page, tab: MixTab) -> None:
    """Lay the tab out and wire it."""
    gr.Markdown("What the adapters of the mix do to the weights, by block, and to each other. No picture is needed.")
    with gr.Row():
        look = gr.Button("Look at the mix", variant="primary")
        which = gr.Dropdown(label="Spectra of", choices=[], min_width=160)
    warnings = gr.HTML()
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            heat = gr.HTML(elem_id="heat")
        with gr.Column(min_width=300):
            alike = gr.HTML(elem_id="alike")
            spectra = gr.HTML(elem_id="spectra")
    rows = tab.controls.rows

    @telling
    def compare(found: list[Any], request: gr.Request) -> Any:
        chosen = mix.rows_of(found)
        seen = insight.comparison(page.endpoints.studio, page.shelf(request), chosen)
        return warnings_html(page, chosen, request, seen), heat_html(seen), alike_html(seen)

    @telling
    def spectrum(name: str | None, found: list[Any], request: gr.Request) -> Any:
        row = next((row for row in mix.rows_of(found) if row.name == name and row.id), None)
        if row is None:
            return ""
        series = insight.spectra(page.endpoints.studio, page.shelf(request), row.id)
        title = f"Singular values of {row.name}, the layers it changes most"
        return charts.heading(title) + charts.lines(series, title)

    def names(found: list[Any]) -> Any:
        return gr.Dropdown(choices=[row["name"] for row in found or []], value=None)

    waits: dict[str, Any] = {"concurrency_id": MODEL, "concurrency_limit": 1, "show_progress": "minimal", **PRIVATE}
    look.click(compare, rows, [warnings, heat, alike], **waits)
    which.input(spectrum, [which, rows], spectra, **waits)
    rows.change(names, rows, which, **QUIET)


def heat_html(found: Comparison) -> str:
    """The norms of the changes by block and adapter, at the weights of the mix."""
    blocks = sorted(found.rows, key=lambda row: -sum(row.energy))[:BLOCKS]
    kept = [row for row in found.rows if row in blocks]
    title = "Norm of the change, by block and adapter"
    labels = [f"{row.block.component} {row.block.block.removeprefix(_LEVEL)}" for row in kept]
    return charts.heading(title) + charts.heat(labels, found.names, [row.norms for row in kept], title)


def alike_html(found: Comparison) -> str:
    """How alike the adapters are, and where they meet."""
    if len(found.names) < 2:
        return charts.notes(["Two adapters are needed to say how alike they are."])
    title = "Similarity (cosine): 1 the same, 0 unrelated, -1 opposed"
    shared = "Energy on the same layers: 1 all of it"
    return (
        charts.heading(title) + charts.heat(found.names, found.names, found.similarity.matrix, title, signed=True)
        + charts.heading(shared) + charts.heat(found.names, found.names, found.shared, shared)
    )  # fmt: skip

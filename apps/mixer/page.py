"""The page: its tabs, and the endpoints beside them."""

from __future__ import annotations

from typing import Any

import gradio as gr
from gradio.events import api

from . import page_mix
from .components import STATIC
from .endpoints import MODEL, Endpoint
from .page_files import RECIPES, converting, keeping
from .page_parts import Page
from .page_pictures import grids, pictures
from .page_understand import understand

HOUR = 3600


def build(page: Page) -> gr.Blocks:
    """The whole page."""
    studio = page.endpoints.studio
    # Uploads and pictures leave Gradio's own cache an hour after they came.
    with gr.Blocks(title="diffadapt", analytics_enabled=False, delete_cache=(HOUR, HOUR), fill_width=True) as blocks:
        for endpoint in page.endpoints.all():  # first, or the page's own handlers would take their names
            serve(endpoint)
        gr.Markdown(f"## diffadapt mixer\n{studio.title} ({studio.kind})")
        # What is dropped anywhere goes here (see page.js): the place that asks for it is not there until its tab is.
        dropped = gr.File(
            label="Dropped", type="filepath", file_types=list(RECIPES), visible="hidden", elem_id="dropped"
        )
        with gr.Tab("Mix"):
            tab = page_mix.build(page)
        with gr.Tab("Pictures"):
            shown = pictures(page, tab)
        with gr.Tab("Grid"):
            grids(page, tab, shown)
        with gr.Tab("Understand"):
            understand(page, tab)
        with gr.Tab("Keep"):
            keeping(page, tab, dropped)
        with gr.Tab("Convert"):
            converting(page, tab)

        def leave(request: gr.Request) -> None:
            page.endpoints.sessions.close(request.session_hash)

        blocks.unload(leave)
    found: gr.Blocks = blocks
    return found


def serve(endpoint: Endpoint) -> None:
    """Offer an endpoint of the page's server by its name."""
    waits: dict[str, Any] = {"concurrency_id": MODEL, "concurrency_limit": 1} if endpoint.model else {}
    api(endpoint.call, api_name=endpoint.name, **waits)


def static(name: str) -> str:
    """The text of one of the page's own files."""
    return (STATIC / name).read_text(encoding="utf-8")

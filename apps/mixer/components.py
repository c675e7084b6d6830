"""The two components of our own: the rows of a mix, and the library's cards. Both are drawn in the browser, of data.

They are functions and no classes: for a class, Gradio writes a stub file beside its source.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

STATIC = Path(__file__).resolve().parent / "static"


def _script(name: str) -> str:
    return "".join((STATIC / file).read_text(encoding="utf-8") for file in ("shared.js", name))


def rows(**options: Any) -> gr.HTML:
    """The rows of a mix: a list of `mix.Row` as data, with what the page shows beside it (see `Page.dressed`).

    Events: "edited" after a change, "why" with the row's name.
    """
    return gr.HTML(
        value=[], js_on_load=_script("rows.js"), apply_default_css=False,
        html_template='<ul class="da-rows" aria-label="Adapters of the mix"></ul>', **options,
    )  # fmt: skip


def cards(**options: Any) -> gr.HTML:
    """Cards of the library: {"cards": [...], "found": how many a search leaves, "done", "of": of the scan}.

    Events: "chosen" with the card's id, "more".
    """
    return gr.HTML(
        value={}, js_on_load=_script("cards.js"), apply_default_css=False,
        html_template='<p class="da-told" aria-live="polite"></p><ul class="da-cards" aria-label="Library"></ul>',
        **options,
    )  # fmt: skip

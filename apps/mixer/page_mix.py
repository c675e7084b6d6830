"""The tab on which a mix is made and drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from diffadapt.combine import METHODS
from diffadapt.errors import DiffAdaptError, RecipeError

from . import charts, components, mix
from .endpoints import MODEL
from .page_checks import why_html, wire_checks
from .page_library import Shelves, wire_library
from .page_parts import PRIVATE, QUIET, Controls, Page, Wish
from .studio import Cancelled, Step
from .telling import telling

_PROMPT = "a red star on a blue background"


@dataclass(frozen=True)
class MixTab:
    """What other tabs need of this one. drawn: fires when a picture is finished."""

    controls: Controls
    picture: gr.Image
    drawn: Any


def build(page: Page) -> MixTab:
    """Lay the tab out and wire it."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=300):
            library = Shelves.laid_out()
        with gr.Column(scale=4, min_width=320):
            controls, buttons, why = _mix(page)
        with gr.Column(scale=3, min_width=300):
            bar = gr.HTML(elem_id="progress")
            picture = gr.Image(
                label="Picture", type="filepath", format="png", interactive=False, height=380,
                buttons=["download", "fullscreen"], elem_classes="da-picture",
            )  # fmt: skip
    wire_library(page, library, controls)
    _wire_rows(page, controls, why)
    drawn = _wire_drawing(page, controls, buttons, bar, picture)
    wire_checks(page, controls, buttons, why)
    return MixTab(controls, picture, drawn)


# -- the mix ---------------------------------------------------------------------------------------------------


def _mix(page: Page) -> tuple[Controls, dict[str, gr.Button], gr.HTML]:
    studio = page.endpoints.studio
    layout = studio.layout
    prompt = gr.Textbox(label="Prompt", value=_PROMPT if page.drawn else "", lines=2, elem_id="prompt")
    negative = gr.Textbox(label="Negative prompt", max_lines=2, visible=studio.has_negative)
    rows = components.rows(
        elem_id="rows", names=list(layout.names) if layout else [],
        presets={name: list(values) for name, values in layout.presets.items()} if layout else {},
    )  # fmt: skip
    with gr.Row():
        draw = gr.Button("Generate", variant="primary", elem_id="generate", min_width=110)
        stop = gr.Button("Stop", elem_id="stop", min_width=110)
    with gr.Row():
        check = gr.Button("Check the mix", size="sm", min_width=110)
        balance = gr.Button("Balance the weights", size="sm", min_width=110)
    why = gr.HTML(elem_id="why")
    usual = studio.settings
    with gr.Accordion("Settings", open=False):
        with gr.Row():
            seed = gr.Number(label="Seed", value=0, precision=0, min_width=90)
            steps = gr.Slider(1, 100, usual.get("num_inference_steps", 30), step=1, label="Steps", min_width=140)
            guidance = gr.Slider(0, 20, usual.get("guidance_scale", 5.0), step=0.1, label="Guidance", min_width=140)
        with gr.Row(visible=studio.sized):
            width = gr.Number(label="Width, 0 for the usual", value=0, precision=0, minimum=0, step=8, min_width=110)
            height = gr.Number(label="Height, 0 for the usual", value=0, precision=0, minimum=0, step=8, min_width=110)
        mode = gr.Radio(["live", "merged"], value="live", label="Mode", info="merged: the weights hold the mix")
        normalise = gr.Radio(
            list(mix.NORMALISATIONS), value="sum", label="Weights",
            info="constant total: their sizes are scaled to sum to 1",
        )  # fmt: skip
        with gr.Row():
            method = gr.Dropdown(
                list(METHODS), value="sum", label="Method", info="others make one adapter of the mix", min_width=140
            )
            rank = gr.Number(label="Rank of that adapter", value=0, precision=0, minimum=0, info="0: the method's own")
            options = gr.Textbox(label="Options of the method", placeholder="density=0.4", max_lines=1, min_width=140)
    controls = Controls(
        prompt, negative, rows, seed, steps, guidance, width, height, mode, method, rank, options, normalise
    )
    return controls, {"draw": draw, "stop": stop, "check": check, "balance": balance}, why


def _wire_rows(page: Page, controls: Controls, why: gr.HTML) -> None:
    """The prompt and the rows, in step in both directions."""

    @telling
    def edited(rows: list[Any], prompt: str, request: gr.Request) -> str:
        return page.prompt(mix.rows_of(rows), prompt, request)

    def written(prompt: str, rows: list[Any], request: gr.Request) -> Any:
        shelf, written = page.shelf(request), page.session(request).written
        if (prompt or "") in written:  # the rows wrote it; what they are by now is newer than what it says
            return gr.skip(), gr.skip()
        try:
            found = mix.with_prompt(mix.rows_of(rows), prompt or "", shelf)
            written.clear()
            return page.dressed(found, shelf), ""
        except RecipeError as error:  # somebody is in the middle of a tag
            return gr.skip(), charts.notes([str(error)], "warning")

    @telling
    def explain(values: dict[Any, Any], request: gr.Request, event: gr.EventData) -> str:
        return why_html(page, Wish.of(controls, values), str((event._data or {}).get("name", "")), request)

    controls.rows.edited(
        edited, [controls.rows, controls.prompt], controls.prompt, trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    controls.prompt.change(
        written, [controls.prompt, controls.rows], [controls.rows, why], trigger_mode="always_last", **QUIET,
    )  # fmt: skip
    controls.rows.why(
        explain, {*controls.all}, why, show_progress="minimal", concurrency_id=MODEL, concurrency_limit=1,
        **PRIVATE,
    )  # fmt: skip


# -- drawing and looking ---------------------------------------------------------------------------------------


def _wire_drawing(
    page: Page, controls: Controls, buttons: dict[str, gr.Button], bar: gr.HTML, picture: gr.Image
) -> Any:
    @telling
    def draw(values: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        session = page.session(request)
        stop, wish = session.begin(), Wish.of(controls, values)
        yield charts.bar(0, "Mixing"), gr.skip()
        try:
            for event in page.endpoints.studio.stream(wish.request(page.shelf(request)), stop):
                if isinstance(event, Step):
                    said = charts.bar(event.done / event.of, f"Step {event.done} of {event.of}")
                    yield said, gr.skip() if event.picture is None else event.picture
                    continue
                shot = session.keep(event)
                said = f"{shot.label}: {event.seconds:.1f} s, of which {event.mixing:.2f} s went into the mix"
                yield charts.notes([said], "good"), str(shot.path)
        except Cancelled:
            yield charts.notes(["Stopped."]), gr.skip()
        except DiffAdaptError as error:
            yield charts.notes([str(error)], "bad"), gr.skip()

    event = buttons["draw"].click(
        draw,
        {*controls.all},
        [bar, picture],
        show_progress="hidden",
        concurrency_id=MODEL,
        concurrency_limit=1,
        **PRIVATE,
    )
    buttons["stop"].click(stop_drawing(page), None, None, queue=False, **PRIVATE)
    return event


def stop_drawing(page: Page) -> Any:
    """A handler that stops the session's run at its next step."""

    def stop(request: gr.Request) -> None:
        page.session(request).stop.set()

    return stop

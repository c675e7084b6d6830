"""The tabs on which pictures of the session are looked at: side by side, as grids, and all of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import gradio as gr

from diffadapt.errors import DiffAdaptError

from . import charts, grid, mix
from .endpoints import MODEL
from .page_mix import MixTab, stop_drawing
from .page_parts import PRIVATE, QUIET, Page, Wish
from .session import Session
from .studio import Cancelled, Step
from .telling import telling

_AXES = {"x": ("Columns", "weight", "0, 0.5, 1"), "y": ("Rows", grid.NONE, "")}


def pictures(page: Page, tab: MixTab) -> list[Any]:
    """The tab of all pictures, and of two with a slider between; returns what shows them, for `refresh`."""
    gr.Markdown("Two pictures of this session with a slider between, and all of them with their recipes.")
    with gr.Row():
        before = gr.Dropdown(label="Before", choices=[], min_width=200)
        after = gr.Dropdown(label="After", choices=[], min_width=200)
    slider = gr.ImageSlider(
        label="Before and after", type="filepath", height=420, buttons=["download", "fullscreen"],
        elem_classes="da-picture",
    )  # fmt: skip
    gallery = gr.Gallery(
        label="Pictures of this session",
        columns=8,
        height="auto",
        object_fit="contain",
        buttons=["download", "fullscreen"],
        elem_id="history",
    )
    recipe = gr.Code(label="Recipe of the chosen picture", language="json", interactive=False, max_lines=18)
    back = gr.Button("Put this mix back", size="sm")

    @telling
    def compare(one: str | None, other: str | None, request: gr.Request) -> Any:
        if not one or not other:
            return gr.skip()
        session = page.session(request)
        return str(session.shot(one).path), str(session.shot(other).path)

    @telling
    def choose(request: gr.Request, event: gr.SelectData) -> str:
        return list(reversed(page.session(request).shots))[int(event.index)].recipe.to_json()

    gr.on([before.change, after.change], compare, [before, after], slider, show_progress="hidden", **PRIVATE)
    gallery.select(choose, None, recipe, show_progress="hidden", **PRIVATE)
    restoring(page, tab, back.click, recipe)
    shown = [before, after, gallery]

    @telling
    def refresh(request: gr.Request) -> Any:
        return history(page.session(request))

    tab.drawn.then(refresh, None, shown, **QUIET)
    return shown


def history(session: Session) -> tuple[Any, Any, Any]:
    """The session's pictures, the latest first, for the two lists and the gallery."""
    shots = list(reversed(session.shots))
    labels = [shot.label for shot in shots]
    before = gr.Dropdown(choices=labels, value=labels[1] if len(labels) > 1 else None)
    after = gr.Dropdown(choices=labels, value=labels[0] if labels else None)
    return before, after, [(str(shot.path), shot.label) for shot in shots]


def restoring(page: Page, tab: MixTab, event: Any, recipe: Any) -> None:
    """Wire an event to bring the mix back that a recipe's JSON, in a component, says."""
    from diffadapt.recipe import Recipe

    controls = tab.controls

    @telling
    def restore(text: str, request: gr.Request) -> Any:
        if not text:
            return [gr.skip()] * 11
        return restored(page, Recipe.from_json(text), request)

    event(restore, recipe, outputs_of(controls), show_progress="hidden", **PRIVATE)


def outputs_of(controls: Any) -> list[Any]:
    """The controls that `restored` sets."""
    names = (
        "rows",
        "prompt",
        "negative",
        "seed",
        "steps",
        "guidance",
        "mode",
        "method",
        "rank",
        "options",
        "normalise",
    )
    return [getattr(controls, name) for name in names]


def restored(page: Page, recipe: Any, request: gr.Request) -> list[Any]:
    """The values that bring a recipe's mix back onto the page; adapters that are missing are named in a warning."""
    shelf = page.shelf(request)
    rows, missing = mix.from_recipe(recipe, shelf)
    if missing:
        gr.Warning(f"The library does not have {', '.join(missing)}: the picture will differ without it.", duration=20)
    usual = page.endpoints.studio.settings
    return [
        page.dressed(rows, shelf), page.prompt(rows, recipe.prompt, request), recipe.negative, recipe.seed or 0,
        recipe.steps or usual.get("num_inference_steps", 30),
        usual.get("guidance_scale", 5.0) if recipe.guidance is None else recipe.guidance,
        "merged" if recipe.merged else "live", recipe.method, recipe.options.get("rank", 0) or 0,
        ", ".join(f"{name}={json.dumps(value)}" for name, value in recipe.options.items() if name != "rank"), "sum",
    ]  # fmt: skip


def grids(page: Page, tab: MixTab, shown: list[Any]) -> None:
    """The tab of X/Y grids."""
    gr.Markdown(
        "The mix of the first tab, changed along one or two axes. Values stand apart by commas, or by semicolons where "
        "they hold commas: `weight` 0, 0.5, 1; `blocks` ALL, FIRST, LAST; `adapter` names, or none; `method` sum, ties."
    )
    axes: list[Any] = []
    for name, (label, kind, values) in _AXES.items():
        with gr.Row():
            axes += [
                gr.Dropdown(list(grid.KINDS), value=kind, label=f"{label}: what changes", min_width=140),
                gr.Dropdown(label=f"{label}: of which adapter", choices=[], allow_custom_value=True, min_width=140),
                gr.Textbox(values, label=f"{label}: values", min_width=180, elem_id=f"{name}-values"),
            ]
    with gr.Row():
        draw = gr.Button("Draw the grid", variant="primary")
        stop = gr.Button("Stop")
    bar = gr.HTML()
    sheet = gr.Image(
        label="Grid", type="filepath", format="png", interactive=False, buttons=["download", "fullscreen"],
        elem_classes="da-picture",
    )  # fmt: skip
    controls = tab.controls

    @telling
    def run(values: dict[Any, Any], request: gr.Request) -> Iterator[Any]:
        session = page.session(request)
        ending = session.begin()
        x = grid.Axis.parse(values[axes[0]], values[axes[2]] or "", values[axes[1]] or "")
        y = grid.Axis.parse(values[axes[3]], values[axes[5]] or "", values[axes[4]] or "")
        wanted = Wish.of(controls, values).request(page.shelf(request))
        cells: list[grid.Cell] = []
        count = len(x.values) * len(y.values)
        try:
            for event in grid.draw_grid(page.endpoints.studio, wanted, x, y, ending):
                if isinstance(event, Step):
                    done = (len(cells) + event.done / event.of) / count
                    yield charts.bar(done, f"Picture {len(cells) + 1} of {count}"), gr.skip()
                else:
                    session.keep(event.drawn)
                    cells.append(event)
            path = session.new_folder("grid") / "grid.png"
            grid.sheet(cells, x, y).save(path)
            yield charts.notes([f"{count} pictures"], "good"), str(path)
        except Cancelled:
            yield charts.notes([f"Stopped after {len(cells)} of {count} pictures."]), gr.skip()
        except DiffAdaptError as error:
            yield charts.notes([str(error)], "bad"), gr.skip()

    def names(rows: list[Any]) -> Any:
        choices = [row["name"] for row in rows or [] if row.get("on")]
        first = choices[0] if choices else None
        return gr.Dropdown(choices=choices, value=first), gr.Dropdown(choices=choices, value=first)

    @telling
    def refresh(request: gr.Request) -> Any:
        return history(page.session(request))

    controls.rows.change(names, controls.rows, [axes[1], axes[4]], **QUIET)
    draw.click(
        run, {*controls.all, *axes}, [bar, sheet], show_progress="hidden", concurrency_id=MODEL, concurrency_limit=1,
        **PRIVATE,
    ).then(refresh, None, shown, **QUIET)  # fmt: skip
    stop.click(stop_drawing(page), None, None, queue=False, **PRIVATE)

"""What the page says of a mix before a picture is made: warnings, and why an adapter is weak or strong."""

from __future__ import annotations

from typing import Any

import gradio as gr

from diffadapt.combine.comparing import Comparison

from . import charts, insight, mix
from .endpoints import MODEL
from .page_parts import PRIVATE, Controls, Page, Wish
from .telling import telling


def wire_checks(page: Page, controls: Controls, buttons: dict[str, gr.Button], why: gr.HTML) -> None:
    """Wire the buttons that check a mix and balance its weights."""

    @telling
    def check(rows: list[Any], request: gr.Request) -> str:
        return warnings_html(page, mix.rows_of(rows), request)

    @telling
    def balance(rows: list[Any], prompt: str, request: gr.Request) -> Any:
        shelf = page.shelf(request)
        found = insight.balanced(page.endpoints.studio, shelf, mix.rows_of(rows))
        return page.dressed(found, shelf), page.prompt(found, prompt, request)

    waits: dict[str, Any] = {"concurrency_id": MODEL, "concurrency_limit": 1, "show_progress": "minimal", **PRIVATE}
    buttons["check"].click(check, controls.rows, why, **waits)
    mixed = [controls.rows, controls.prompt]
    buttons["balance"].click(balance, mixed, mixed, **waits)


def why_html(page: Page, wish: Wish, name: str, request: gr.Request) -> str:
    """Why an adapter is weak or strong, as the page shows it."""
    shelf = page.shelf(request)
    row = next((row for row in wish.mix() if row.name == name), None)
    if row is None or not row.id:
        return charts.notes([f"{name} is not in the library: upload it, or switch it off."], "bad")
    card = shelf.card(row.id)
    fit = shelf.fit(card)
    head = charts.notes([f"{name}: applied {fit.text}"], {"green": "good", "amber": "warning"}.get(fit.level, "bad"))
    head += charts.notes([*fit.reasons[:12], *card.warnings[:6]], "warning")
    if not row.on:
        return head + charts.notes([f"{name} is switched off: it has no effect."])
    found = insight.effect_of(page.endpoints.studio, wish.recipe(shelf), name)
    total, rows = found.intended or 1.0, []
    for one in found.blocks:
        relative = "" if one.relative is None else f"{one.relative:.1%}"
        label = f"{one.block.component} {one.block.block} ({one.applied} of {one.modules})"
        rows.append((label, one.intended, one.realised, relative))
    said = f"In force: {found.realised / total:.0%} of what the file does at strength 1."
    left = [f"not measured: {target}: {why}" for target, why in list(found.left_out.items())[:5]]
    return head + charts.notes([said]) + charts.pairs(rows, f"Effect of {name} by block") + charts.notes(left)


def warnings_html(page: Page, rows: list[mix.Row], request: gr.Request, found: Comparison | None = None) -> str:
    """What is likely to go wrong with a mix, before a picture is made. found: its comparison, where it is made."""
    shelf = page.shelf(request)
    said: list[str] = []
    for row in rows:
        if not row.on:
            continue
        if not row.id:
            said.append(f"{row.name} is not in the library.")
            continue
        card = shelf.card(row.id)
        fit = shelf.fit(card)
        said += [f"{row.name}: {fit.text}: {reason}" for reason in fit.reasons[:1] if fit.level != "green"]
        said += [f"{row.name}: {warning}" for warning in card.warnings[:3]]
    found = found or insight.comparison(page.endpoints.studio, shelf, rows)
    words = {
        "opposed": "pull against each other", "alike": "do the same and add up",
        "crowded": "act on the same directions",
    }  # fmt: skip
    for clash in found.clashes[:8]:
        one, other = clash.adapters
        said.append(f"{one} and {other} {words[clash.kind]} in {' '.join(clash.block)} ({clash.value:+.2f}).")
    total = sum(abs(row.weight) for row in rows if row.on)
    if total > 2:
        said.append(f"The weights sum to {total:.2g}: pictures may burn out. Constant total, or lower weights, help.")
    return charts.notes(said, "warning") or charts.notes(["Nothing speaks against this mix."], "good")

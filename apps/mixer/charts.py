"""Small charts as SVG and tables as HTML, of data that the library worked out. Every text is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_CELL, _HIGH, _LETTER, _ROOM = 64, 24, 6.2, 24
_COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")


def heat(
    rows: Sequence[str], columns: Sequence[str], values: Sequence[Sequence[float]], title: str, signed: bool = False
) -> str:
    """A heat map, values[row][column]; the numbers stand in the cells. signed: from -1 to 1, two colours."""
    largest = 1.0 if signed else max((abs(value) for row in values for value in row), default=0.0) or 1.0
    left = _LETTER * min(28, max(map(len, rows), default=0)) + 16
    lean = _LETTER * min(18, max(map(len, columns), default=0))
    top = 0.6 * lean + _ROOM
    wide, high = left + _CELL * len(columns) + 0.8 * lean, top + _HIGH * len(rows) + 6
    found = [_opening(wide, high, title)]
    for x, name in enumerate(columns):
        at = left + x * _CELL + _CELL / 2
        turn = f"rotate(-35 {at} {top - 8})"
        found.append(f'<text x="{at}" y="{top - 8}" transform="{turn}" class="da-t">{_short(name, 18)}</text>')
    for y, name in enumerate(rows):
        base = top + y * _HIGH
        found.append(f'<text x="{left - 8}" y="{base + 16}" class="da-t da-end">{_short(name, 28)}</text>')
        for x, value in enumerate(values[y]):
            share = max(-1.0, min(1.0, value / largest))
            colour = "#dc2626" if share < 0 else "#2563eb"
            edge = left + x * _CELL
            said = escape(f"{name}, {columns[x]}: {value:.3g}")
            found.append(
                f'<g><title>{said}</title><rect x="{edge}" y="{base}" width="{_CELL - 2}" height="{_HIGH - 2}" rx="3" '
                f'fill="{colour}" fill-opacity="{0.06 + 0.8 * abs(share):.3f}"/>'
                f'<text x="{edge + _CELL / 2 - 1}" y="{base + 15}" class="da-t da-mid">{value:.2g}</text></g>'
            )
    return "".join([*found, "</svg>"])


def lines(series: Sequence[Mapping[str, Any]], title: str) -> str:
    """Falling curves on a logarithmic scale. series: {"layer": name, "values": numbers above 0}."""
    wide, high, left, top, bottom = 640, 300, 48, 12, 268
    kept = [[max(float(value), 1e-9) for value in one["values"]] for one in series]
    low = min((min(values) for values in kept), default=1.0)
    top_value = max((max(values) for values in kept), default=1.0)
    floor, ceiling = math.log10(max(low, top_value * 1e-4)), math.log10(top_value)
    length = max((len(values) for values in kept), default=2)
    found = [_opening(wide, high, title)]
    for step in range(5):
        y = top + (bottom - top) * step / 4
        value = 10 ** (ceiling - (ceiling - floor) * step / 4)
        found.append(f'<line x1="{left}" x2="{wide - 8}" y1="{y}" y2="{y}" class="da-rule"/>')
        found.append(f'<text x="{left - 6}" y="{y + 4}" class="da-t da-end">{value:.2g}</text>')
    for number, values in enumerate(kept):
        points = []
        for i, value in enumerate(values):
            x = left + (wide - left - 12) * i / max(1, length - 1)
            share = (ceiling - math.log10(max(value, 10**floor))) / ((ceiling - floor) or 1.0)
            points.append(f"{x:.1f},{top + (bottom - top) * share:.1f}")
        colour = _COLOURS[number % len(_COLOURS)]
        name = escape(str(series[number]["layer"]))
        found.append(
            f'<polyline points="{" ".join(points)}" fill="none" stroke="{colour}" stroke-width="1.6">'
            f"<title>{name}</title></polyline>"
        )
    found.append(f'<text x="{wide / 2}" y="{high - 8}" class="da-t da-mid">singular value, from the largest</text>')
    legend = "".join(
        f'<li><span style="background:{_COLOURS[i % len(_COLOURS)]}"></span>{escape(str(one["layer"]))}</li>'
        for i, one in enumerate(series)
    )
    return "".join([*found, f'</svg><ul class="da-legend">{legend}</ul>'])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    top = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="da-table"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def heading(text: str) -> str:
    """A heading."""
    return f"<h4>{escape(text)}</h4>"


def notes(texts: Sequence[str], kind: str = "note") -> str:
    """A list of sentences. kind: "note", "warning", "bad" or "good"."""
    if not texts:
        return ""
    return f'<ul class="da-notes da-{kind}">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def bar(share: float, text: str) -> str:
    """How far something is, 0 to 1."""
    percent = round(100 * min(max(share, 0.0), 1.0))
    return (
        f'<div class="da-bar" role="progressbar" aria-valuenow="{percent}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-label="progress"><span style="width:{percent}%"></span></div><p class="da-said">{escape(text)}</p>'
    )


def pairs(rows: Sequence[tuple[str, float, float, str]], title: str) -> str:
    """Two bars in each row, intended above realised, of the larger of all. rows: name, intended, realised, remark."""
    largest = max((max(intended, realised) for _, intended, realised, _ in rows), default=0.0) or 1.0
    found = []
    for name, intended, realised, remark in rows:
        found.append(
            f"<tr><th scope='row'>{escape(name)}</th><td class='da-two'>"
            f"<span class='da-a' style='width:{100 * intended / largest:.1f}%'></span>"
            f"<span class='da-b' style='width:{100 * realised / largest:.1f}%'></span></td>"
            f"<td>{intended:.3g}</td><td>{realised:.3g}</td><td>{escape(remark)}</td></tr>"
        )
    head = "<tr><th scope='col'>block</th><th scope='col'>share</th><th scope='col'>intended</th>" \
        "<th scope='col'>realised</th><th scope='col'>of the weights</th></tr>"  # fmt: skip
    return (
        f'<div class="da-table"><table aria-label="{escape(title)}"><thead>{head}</thead>'
        f"<tbody>{''.join(found)}</tbody></table></div>"
    )


def _opening(wide: float, high: float, title: str) -> str:
    return (
        f'<svg class="da-chart" role="img" aria-label="{escape(title)}" viewBox="0 0 {wide:g} {high:g}" '
        f'style="max-width:{wide:g}px"><title>{escape(title)}</title>'
    )


def _short(text: str, most: int) -> str:
    return escape(text if len(text) <= most else f"{text[: most - 1]}…")

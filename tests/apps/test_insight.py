"""What is said of adapters without a picture: shares, likeness, spectra; and charts that are safe to show."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from shutil import copyfile

import pytest

import diffadapt
from diffadapt.apps.mixer import charts, insight
from diffadapt.apps.mixer.library import Library
from diffadapt.apps.mixer.mix import Row
from diffadapt.apps.mixer.shelf import Shelf
from diffadapt.apps.mixer.studio import Studio
from diffadapt.errors import DiffAdaptError, RecipeError, SourceError
from tests.apps import files
from tests.apps.conftest import Drawing, row

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
MIX = [row("glow", -0.8, te=0.3), row("frame", 0.4), row("dusk", 1.0, on=False), Row("", "mist"), row("outline", 0.6)]


def test_a_balance_keeps_signs_and_the_sum_of_sizes(studio: Studio, shelf: Shelf) -> None:
    found = insight.balanced(studio, shelf, MIX)
    assert [one.name for one in found] == [one.name for one in MIX]
    assert (found[2], found[3]) == (MIX[2], MIX[3])  # off, and not in the library
    weighed = [found[0], found[1], found[4]]
    assert [math.copysign(1, one.weight) for one in weighed] == [-1, 1, 1]
    assert sum(abs(one.weight) for one in weighed) == pytest.approx(1.8, abs=1e-3)
    assert all(one.te is None for one in weighed)
    # An equal share each, of what they do to the weights.
    norms = [insight.comparison(studio, shelf, [one]).rows for one in weighed]
    effects = [math.sqrt(sum(block.energy[0] for block in blocks)) for blocks in norms]
    assert max(effects) / min(effects) == pytest.approx(1, abs=0.01)
    equal = insight.balanced(studio, shelf, MIX, "constant_total")
    assert [one.weight for one in (equal[0], equal[1], equal[4])] == pytest.approx([-0.6, 0.6, 0.6])
    with pytest.raises(DiffAdaptError, match="no rule"):
        insight.balanced(studio, shelf, MIX, "nonsense")


def test_a_balance_of_weights_of_nought(studio: Studio, shelf: Shelf) -> None:
    found = insight.balanced(studio, shelf, [row("glow", 0.0), row("frame", 0.0)])
    assert sum(one.weight for one in found) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("rows", [[], [row("glow", on=False)], [Row("", "mist")]])
def test_nothing_that_is_on_is_said(studio: Studio, shelf: Shelf, rows: list[Row]) -> None:
    for look in (insight.comparison, insight.balanced):
        with pytest.raises(RecipeError, match="No adapter is switched on"):
            look(studio, shelf, rows)


def test_a_comparison_is_of_the_rows_at_their_weights(studio: Studio, shelf: Shelf) -> None:
    found = insight.comparison(studio, shelf, MIX)
    assert list(found.similarity.names) == ["glow", "frame", "outline"]
    single, double = (insight.comparison(studio, shelf, [row("glow", weight)]).rows for weight in (0.5, 1.0))
    for one, two in zip(single, double, strict=True):
        assert two.energy[0] == pytest.approx(4 * one.energy[0])
    twice = insight.comparison(studio, shelf, [row("glow"), Row("glow", "again")])
    assert list(twice.similarity.names) == ["glow", "again"]
    assert twice.similarity.matrix[0][1] == pytest.approx(1.0)
    assert {clash.kind for clash in twice.clashes} >= {"alike"}


def test_spectra_are_of_the_layers_that_change_most(studio: Studio, shelf: Shelf) -> None:
    found = insight.spectra(studio, shelf, "outline")
    assert len(found) == insight.LAYERS
    sizes = [sum(value**2 for value in one["values"]) for one in found]
    assert sizes == sorted(sizes, reverse=True)
    for one in found:
        assert one["values"] == sorted(one["values"], reverse=True)
        assert one["block"] in one["layer"]
        assert 0 < len(one["values"]) <= 64
    with pytest.raises(SourceError, match="not in the library"):
        insight.spectra(studio, shelf, "nothing")


def test_an_effect_is_what_is_in_force(draw: Drawing) -> None:
    rows = [row("glow", 0.5), row("frame", 1.0, blocks="FIRST")]
    half = insight.effect_of(draw.studio, draw.recipe(rows), "glow")
    assert half.realised == pytest.approx(0.5 * half.intended)
    first = insight.effect_of(draw.studio, draw.recipe(rows), "frame")
    assert 0 < first.realised < first.intended
    silent = {one.block.block: one.realised for one in first.blocks if one.block.component == "unet"}
    assert any(value == 0.0 for value in silent.values())
    for name in ("dusk", "", "glow2"):
        with pytest.raises(RecipeError, match="not switched on"):
            insight.effect_of(draw.studio, draw.recipe(rows), name)


def test_a_file_that_changed_is_read_anew(studio: Studio, tmp_path: Path) -> None:
    path, norms = tmp_path / "style.safetensors", []
    library = Library([tmp_path], studio.pipeline)
    for name in ("glow", "frame"):
        copyfile(files.adapters("unet")[name], path)
        library.scan(wait=True)
        adapter = insight.adapter_of(Shelf(library), "style.safetensors")
        assert adapter.name == "style"
        assert adapter.targets.keys() == diffadapt.read_adapter(path).targets.keys()
        norms.append(insight.spectra(studio, Shelf(library), "style.safetensors"))
    assert norms[0] != norms[1]


CHARTS: dict[str, Callable[[], str]] = {
    "heat": lambda: charts.heat([EVIL, "b"], [EVIL], [[1.0], [-2.0]], EVIL, signed=True),
    "heat of nothing": lambda: charts.heat([], [], [], EVIL),
    "heat of noughts": lambda: charts.heat(["a"], ["b", "c"], [[0.0, 0.0]], EVIL),
    "lines": lambda: charts.lines(
        [{"layer": EVIL, "values": [3.0, 0.0, 1e-30]}, {"layer": "b", "values": [1.0]}], EVIL
    ),
    "lines of nothing": lambda: charts.lines([], EVIL),
    "table": lambda: charts.table([EVIL], [[EVIL], [""]]),
    "heading": lambda: charts.heading(EVIL),
    "notes": lambda: charts.notes([EVIL, EVIL], "warning"),
    "bar": lambda: charts.bar(0.5, EVIL),
    "pairs": lambda: charts.pairs([(EVIL, 1.0, 0.5, EVIL), ("b", 0.0, 0.0, "")], EVIL),
    "pairs of nothing": lambda: charts.pairs([], EVIL),
}


@pytest.mark.parametrize("name", CHARTS)
def test_what_a_chart_shows_is_text(name: str) -> None:
    """Names come from strangers' files: none of them is markup, and what is left is well-formed."""
    text = CHARTS[name]()
    found = ET.fromstring(f"<div>{text}</div>")
    tags = {element.tag for element in found.iter()}
    assert tags.isdisjoint({"script", "img"})
    assert not [key for element in found.iter() for key in element.attrib if key.startswith("on")]
    said = "".join(found.itertext()) + "".join(value for element in found.iter() for value in element.attrib.values())
    assert "<script>" in said or "of n" in name
    assert "nan" not in re.sub(r"<[^>]*>", "", text)


def test_a_bar_stays_between_nothing_and_all() -> None:
    assert [re.search(r'aria-valuenow="(\d+)"', charts.bar(share, ""))[1] for share in (-1, 0, 0.5, 7)] == [  # type: ignore[index]
        "0", "0", "50", "100",
    ]  # fmt: skip
    assert charts.notes([]) == ""

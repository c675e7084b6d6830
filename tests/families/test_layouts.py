"""The measured layouts are those of the installed classes, and the name tables lead into them."""

from __future__ import annotations

import pytest

from diffadapt.families import FAMILIES
from diffadapt.families.measure import FOLDER, measure, text_of
from diffadapt.families.names import renumbered
from tests.families.full_size import MEASURED, on_meta


@pytest.mark.parametrize("layout", MEASURED)
def test_a_layout_is_what_the_installed_class_measures(layout):
    seen, kept = text_of(measure(on_meta(layout))), (FOLDER / f"{layout}.json").read_text("utf-8")
    assert seen == kept, f"run `python -m diffadapt.families.measure {layout}` and look at the difference"


def test_no_layout_is_left_over():
    assert {path.stem for path in FOLDER.glob("*.json")} == MEASURED.keys()


@pytest.mark.parametrize("layout", MEASURED)
def test_every_rule_leads_to_a_module_of_the_class(layout):
    names = MEASURED[layout]
    model = names.model
    assert model is not None
    known = model.measured.modules.keys() | model.measured.parameters.keys()
    strangers = [t for rule in (*names.rules, *names.native) for t in rule.targets if renumbered(t) not in known]
    assert not strangers


@pytest.mark.parametrize("layout", MEASURED)
def test_no_name_has_two_meanings(layout):
    """Different patterns of one table never match the same text with different targets."""
    names = MEASURED[layout]
    seen: dict[str, tuple[str, ...]] = {}
    for rule in (*names.rules, *names.native):
        text = rule.foreign.replace(".", "_")
        for letter, number in (("{i}", "3"), ("{j}", "5"), ("{k}", "7"), ("{n}", "4")):
            text = text.replace(letter, number)
        route = names.resolve(text)
        assert route is not None
        assert seen.setdefault(text, route.modules) == route.modules


def test_families_have_names_of_their_own():
    names = [family.name for family in FAMILIES]
    assert len(names) == len(set(names))

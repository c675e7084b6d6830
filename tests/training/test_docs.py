"""The documents name every method, and every option of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffadapt.training.methods import METHODS
from diffadapt.training.methods import TEXT as OF_TEXT

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*METHODS, *OF_TEXT])
def test_a_method_is_in_the_table(name):
    assert f"`{name}`" in TEXT


@pytest.mark.parametrize("name", list(METHODS))
def test_its_options_are_told_of(name):
    method = METHODS[name]
    told = {option for option in method.options if f"`{option}`" in TEXT}
    assert told >= set(method.options) - set(method.fixed) - {"rank_stabilised", "inner", "peft"}

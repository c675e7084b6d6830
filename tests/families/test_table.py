"""docs/families.md says what the data and the tests say."""

from __future__ import annotations

from tests.families.table import PATH, document


def test_the_table_is_current():
    assert PATH.read_text("utf-8") == document(), "run `python -m tests.families.table`"

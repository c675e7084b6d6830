"""Every method learns for fifty steps on Shapes-DiT, and its file is read back by its home library."""

from __future__ import annotations

import pytest

from diffadapt.training.methods import METHODS
from tests.training.home_runs import learns_and_is_read


@pytest.mark.parametrize("algorithm", list(METHODS))
def test_it_learns_and_its_home_library_reads_it(algorithm, tmp_path, monkeypatch):
    learns_and_is_read(algorithm, "dit", tmp_path, monkeypatch)

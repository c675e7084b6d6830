"""Collects every measured oracle error and writes the table `out/oracle.json` (one file per xdist worker)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def record_error() -> Iterator[Callable[[str, str, str, float], None]]:
    """`record_error(algorithm, layer, oracle, error)`: the largest error of each triple is kept.

    Rows of earlier runs stay, so that running one test file does not lose the rows of the others.
    """
    rows: dict[tuple[str, str, str], float] = {}

    def record(algorithm: str, layer: str, oracle: str, error: float) -> None:
        key = (algorithm, layer, oracle)
        rows[key] = max(error, rows.get(key, 0.0))

    yield record
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    path = ROOT / "out" / (f"oracle-{worker}.json" if worker else "oracle.json")
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        earlier = {(r["algorithm"], r["layer"], r["oracle"]): r["error"] for r in json.loads(path.read_text())}
        rows = earlier | rows
    table = [
        {"algorithm": a, "layer": layer, "oracle": oracle, "error": error}
        for (a, layer, oracle), error in sorted(rows.items())
    ]
    path.write_text(json.dumps(table, indent=1))

"""What every oracle test measures of a case."""

from __future__ import annotations

from collections.abc import Callable

from diffadapt.algorithms.base import Delta
from diffadapt.algorithms.layer import Layer
from tests.algorithms.reference import change_error, live, merged
from tests.algorithms.trainers import Case

Record = Callable[[str, str, str, float], None]

TOLERANCE = 1e-6
"""Of the change: the trainers run in float64, so that all of it is our float32."""


def check_case(case: Case, record: Record, layer: str, oracle: str, tolerance: float = TOLERANCE) -> Delta:
    """Live and merged output against the trainer's forward; the delta belongs to the layer. Returns the delta."""
    delta = case.delta()
    described = Layer.of(case.module)
    assert described is not None
    delta.check(described)
    for mode, output in (("live", live), ("merged", merged)):
        error = change_error(output(case.module, delta, case.x), case.truth, case.base)
        record(delta.algorithm, layer, f"{oracle}, {mode}", error)
        assert error < tolerance, (mode, error)
    return delta

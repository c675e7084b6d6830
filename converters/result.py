"""What becomes of one file, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from diffadapt.adapter import Adapter
from diffadapt.converters.plan import Plan
from diffadapt.errors import DialectError
from diffadapt.io.safetensors_writer import Layout


class Told(NamedTuple):
    """What a report says of a result; see `work.Record`. keys: how many tensors it has."""

    dialect: str
    family: str | None
    algorithms: Mapping[str, int]
    keys: int
    left_out: Mapping[str, str]
    losses: float = 0.0


@dataclass(frozen=True)
class Made:
    """A result, but for its provenance.

    layout: its runs are of the source, whose data section begins at byte `data_start`. metadata: the result's; origin:
    the source's. beside: the JSON of PEFT's folder. shaped: the adapter that is written, None where only names change.
    """

    told: Told
    layout: Layout
    data_start: int
    metadata: Mapping[str, str]
    origin: Mapping[str, str]
    beside: Mapping[str, Any] | None = None
    shaped: Adapter | None = None


def left_out(adapter: Adapter, plan: Plan) -> dict[str, str]:
    """Keys of the source that will not be in the result, and why. Raises DialectError where the plan forbids it."""
    unknown = dict.fromkeys(adapter.unmatched, "no algorithm explains it")
    if unknown and plan.strict:
        shown = ", ".join(map(repr, list(unknown)[:3]))
        raise DialectError(
            f"{adapter.source}: {len(unknown)} keys would be lost, as no algorithm explains them: {shown}. "
            "Leave out --strict to convert the rest."
        )
    return {**adapter.ignored, **unknown}


def told(adapter: Adapter, plan: Plan, keys: int, losses: Mapping[Any, float]) -> Told:
    """What is told of the result of an adapter. keys: the result's. losses: see `Adapter`. Errors as for `left_out`."""
    worst = round(max(losses.values(), default=0.0), 6)
    return Told(adapter.dialect, adapter.family, dict(adapter.algorithms), keys, left_out(adapter, plan), worst)

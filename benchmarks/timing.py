"""Timing that a busy machine disturbs least: warm-up, alternating order, medians, ratios taken round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

Result = TypeVar("Result")

_FOUND = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
DEVICE = "cpu" if _FOUND is None else _FOUND.type
"""Where models are measured: the accelerator, where there is one."""


def synchronise() -> None:
    """Wait for what the accelerator still has to do."""
    if DEVICE != "cpu":
        torch.accelerator.synchronize()


def seconds(call: Callable[[], object]) -> float:
    """The seconds that one call takes, to the end of its work on the accelerator."""
    synchronise()
    start = time.perf_counter()
    call()
    synchronise()
    return time.perf_counter() - start


def alternate(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every call, once per round, in an order that turns from round to round."""
    for call in calls.values():
        for _ in range(warm_up):
            call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for number in range(rounds):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            taken[name].append(seconds(calls[name]))
    return taken


def median(values: list[float]) -> float:
    """Rounded to what a clock on a shared machine can tell."""
    return float(f"{statistics.median(values):.4g}")


def ratio(above: list[float], below: list[float]) -> float:
    """The median over rounds of one call's time by another's."""
    return float(f"{statistics.median(a / b for a, b in zip(above, below, strict=True)):.4g}")


def _status(field: str) -> int | None:
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    line = next((row for row in path.read_text().splitlines() if row.startswith(field + ":")), None)
    return None if line is None else int(line.split()[1]) * 1024


def peak_growth(call: Callable[[], Result]) -> tuple[Result, int | None]:
    """What a call returns, and by how many bytes it drove resident memory above where it began (Linux, else None).

    Pages of mapped files that were touched count as resident.
    """
    gc.collect()
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return call(), None
    reset.write_text("5")  # resets the high-water mark
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    return result, None if before is None or peak is None else max(0, peak - before)

"""What every test runs under."""

from __future__ import annotations

import gc

import pytest
import torch

# Tests run side by side, one process per core: more threads in each would only wait for one another.
torch.set_num_threads(1)

# Models come and go in thousands of objects: looking for garbage after every 700 of them takes a twentieth of the time.
gc.set_threshold(10_000, 10, 10)


LONG = (
    "tests/test_examples.py",
    "tests/apps/browser/",
    "tests/training/",
    "tests/take_over/",
    "tests/converters/",
    "tests/attacks/",
    "tests/apps/",
)
"""What takes longest begins first: a file goes to one process as a whole, and the last one would keep it alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long ones in front, and leave the others as they are."""
    rank = {name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: next((rank[name] for name in LONG if item.nodeid.startswith(name)), len(LONG)))


def pytest_collection_finish() -> None:
    """What was imported stays to the end: a million objects that no collection of garbage has to look at again."""
    gc.collect()
    gc.freeze()

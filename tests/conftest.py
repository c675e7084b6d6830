"""What every test runs under."""

from __future__ import annotations

import gc

import torch

# Tests run side by side, one process per core: more threads in each would only wait for one another.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """What was imported stays to the end: a million objects that no collection of garbage has to look at again."""
    gc.collect()
    gc.freeze()

"""`with pipe.adapters.disable(): ...`: out of force for a while."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Stack = TypeVar("Stack")


class Disabled(Generic[Stack]):
    """What `disable` returns: as a context manager it puts the adapters in force again at its end."""

    def __init__(self, stack: Stack, enable: Callable[[], None] | None) -> None:
        """enable: puts them in force again; None where they were out of force before."""
        self._stack, self._enable = stack, enable

    def __enter__(self) -> Stack:
        return self._stack

    def __exit__(self, *error: object) -> None:
        if self._enable is not None:
            self._enable()

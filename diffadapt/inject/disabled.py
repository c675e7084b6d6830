"""`with pipe.adapters.disable(): ...`: out of force for a while."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffadapt.inject.stack import PipelineAdapters


class Disabled:
    """Puts the adapters in force again at the end, if they were before."""

    def __init__(self, stack: PipelineAdapters, was_enabled: bool) -> None:
        self._stack, self._was_enabled = stack, was_enabled

    def __enter__(self) -> PipelineAdapters:
        return self._stack

    def __exit__(self, *error: object) -> None:
        if self._was_enabled:
            self._stack.enable()

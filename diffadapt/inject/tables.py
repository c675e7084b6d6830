"""What adapters do to parameters that belong to no layer, or to one that is never called. Trainers of whole differences
change them.

There is no call to hook, so what is in force at them is always in the parameter itself, with a copy as the way back:
they are small.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from diffadapt.adapter import TargetKey
from diffadapt.inject.merge import MergedModule
from diffadapt.inject.merging import MergedWeights, MergeOptions
from diffadapt.inject.placement import Loaded, mix_of


class Tables:
    """What adapters do to the tables of a pipeline."""

    def __init__(self) -> None:
        self._merged = MergedWeights()

    @property
    def modules(self) -> Mapping[TargetKey, MergedModule]:
        """The tables that hold adapters now."""
        return self._merged.modules

    def refresh(self, loaded: Iterable[Loaded], enabled: bool, factor: float) -> None:
        """Bring every table to the strengths in force."""
        uncalled = (p for adapter in loaded for p in adapter.placements if not p.called)
        mix = mix_of(uncalled if enabled else (), factor)
        if mix or self._merged.modules:
            self._merged.bring(mix, MergeOptions(), None)

    def keep(self, loaded: Iterable[Loaded], names: Collection[str]) -> None:
        """Make what these adapters do to the tables final."""
        self.refresh([adapter for adapter in loaded if adapter.name in names], True, 1.0)
        self._merged.modules.clear()
        self._merged.release()
